"""Finds the files of a blend's dataset: on this machine, behind a URL, or on the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import io
import os
import re
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemotron_kit.data_prep.config import Dataset
from nemotron_kit.data_prep.cpython import SCHEME as CPYTHON
from nemotron_kit.data_prep.cpython import write_corpus
from nemotron_kit.data_prep.exercises import SCHEME as EXERCISES
from nemotron_kit.data_prep.exercises import write_exercises
from nemotron_kit.data_prep.local_files import Omissions, is_pattern, local_files_below, matching
from nemotron_kit.errors import UserError, near
from nemotron_kit.files import kind_of_file, open_regular
from nemotron_kit.home import expand_user
from nemotron_kit.masking import LEAST_NOTED, note_used

BUFFER = 1 << 20
# What a remote store says about content, the strongest first; a time stamp is the last resort.
_IDENTITIES = ("sha256", "lfs", "blob_id", "md5Hash", "ETag", "etag", "checksum", "content_md5", "crc32c", "generation")
_TIMES = ("LastModified", "last_modified", "updated", "mtime", "created", "modify", "modificationTime")
# In a URL: the environment variable that holds a password or token.
_REFERENCE = re.compile(r"\$\{secret:([A-Za-z_]\w*)\}")


@dataclass(frozen=True)
class FoundFile:
    """A file that a listing found: `path` opens it, `identity` is what a remote store said about its content."""

    path: str
    size: int
    identity: str | None = None


LOCAL = "file://"
_GENERATED = {CPYTHON: write_corpus, EXERCISES: write_exercises}  # what needs no download


def is_remote(path: str) -> bool:
    """Whether a path is a URL other than file://."""
    return "://" in path and not path.startswith(LOCAL)


def open_binary(path: str) -> BinaryIO:
    """The file at a path or URL, buffered and seekable."""
    if not is_remote(path):
        return open_regular(path, buffering=BUFFER)
    fs, inner = filesystem(path)
    return cast(BinaryIO, io.BufferedReader(fs.open(inner, "rb"), BUFFER))


def filesystem(url: str) -> tuple[Any, str]:
    """(fsspec file system, path inside it) of a URL. Raises UserError if the package for it is missing, or a variable
    that a `${secret:NAME}` in it names."""
    if "::" in url or url.startswith("local://"):
        # fsspec names the files that it lists there without the rest of the chain, so that none could be opened.
        raise UserError(
            f"{url}: not a URL of one store, such as s3://bucket/folder.",
            hint="Write a local path by itself; unpack an archive, and give its files.",
        )
    address = _with_secrets(url)
    try:
        from fsspec.core import url_to_fs

        fs, inner = url_to_fs(address)
    except ImportError as error:
        raise UserError(f"{url}: {error}", hint=f"Install what {url.split('://')[0]}:// needs.") from error
    except ValueError as error:  # an unknown protocol
        raise UserError(f"{url}: {error}") from error
    except OSError as error:  # some connect at once
        raise UserError(f"{url}: can't be reached: {error.strerror or error}.") from error
    except Exception as error:  # each protocol raises its own: one that needs options a TypeError, mostly
        raise UserError(
            f"{url}: {url.split('://')[0]}:// can't be opened: {type(error).__name__}: {error}.",
            hint="A blend file gives a URL alone: a protocol that needs options has to be copied to files first.",
        ) from error
    return fs, str(inner)


def _with_secrets(url: str) -> str:
    for name in _REFERENCE.findall(url):
        value = os.environ.get(name, "")
        if len(value) < LEAST_NOTED:
            why = f"has fewer than {LEAST_NOTED} characters" if value else "is not in the environment"
            hint = f'export {name}=…; for a job elsewhere also secrets = ["{name}"] in its profile.'
            raise UserError(f"{url}: {name} {why}.", hint=hint)
        note_used(name)
        url = url.replace(f"${{secret:{name}}}", value)
    return url


def _without_secrets(path: str, url: str) -> str:
    """A path that was found below `url`, with the references of `url` in place of the secrets: plans hold it."""
    for name in _REFERENCE.findall(url):
        path = path.replace(os.environ[name], f"${{secret:{name}}}")
    return path


def files_below(fs: Any, inner: str, left: Omissions) -> dict[str, FoundFile]:
    """Relative path → file, of every file below `inner` (or `inner` itself); hidden ones are left out."""
    below = {}
    found = fs.find(inner, detail=True)
    if list(found) == [f"{inner}/{inner.rsplit('/', 1)[-1]}"] and (info := fs.info(inner))["type"] == "file":
        found = {inner: info}  # ftp lists a file as if it were in a folder of its name
    for path, info in found.items():
        relative = path[len(inner) :].strip("/") or path.rsplit("/", 1)[-1]
        if any(part.startswith(".") for part in relative.split("/")):
            left.add(relative, "hidden")
        elif info.get("type", "file") != "file":
            left.add(relative, f"a {info['type']}, not a file")
        elif info.get("size") is None and kind_of(relative) is None:  # such as a web page's links; each would be asked
            left.add(relative, "no known ending")
        else:
            below[relative] = found_at(fs, path, info)
    return below


def found_at(fs: Any, path: str, info: dict[str, Any]) -> FoundFile:
    """The file at a path of an fsspec file system; `info` is what that lists of it. Over http(s) a listing has names
    alone, so the file itself is asked. Raises ValueError for a file of unknown size."""
    info = info if info.get("size") is not None else fs.info(path)
    if info.get("size") is None:
        raise ValueError(f"the server does not tell the size of {path.rsplit('/', 1)[-1]}")
    identity = None
    for key in (*_IDENTITIES, *_TIMES):
        value = info.get(key)
        if isinstance(value, dict):
            value = value.get("sha256")
        if value:
            identity = f"{key}:{value}"
            break
    return FoundFile(fs.unstrip_protocol(path), int(info["size"]), identity)


def content_identity(path: str, size: int, *, samples: tuple[int, int] | None = (16, 1 << 16)) -> str:
    """What identifies a local file's content: its sha256 (`samples` None), or for a large file its size, time and so
    many samples of so many bytes."""
    digest = hashlib.sha256()
    # No more than a sample is read for one: a file system's own block, the default, has 4 MiB on Lustre.
    with open_regular(path, buffering=samples[1] if samples else BUFFER) as file:
        if samples is None:
            while data := file.read(BUFFER):
                digest.update(data)
            return f"sha256:{digest.hexdigest()}"
        count, length = samples
        for number in range(count):
            file.seek(size * number // count)
            digest.update(file.read(length))
        return f"sampled:{size}:{os.fstat(file.fileno()).st_mtime_ns}:{digest.hexdigest()}"


def unlistable(path: str, where: str, error: Exception) -> UserError:
    """The error for a URL that could not be listed: missing, forbidden, unreachable."""
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return UserError(
        f"{where}: {path} can't be listed: {reason}", hint="Is the name right, the network there, a token needed?"
    )


KINDS = {
    ".jsonl": "jsonl",
    ".json": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".rst": "text",
}
_COMPRESSIONS = {".gz": "gz", ".zst": "zst", ".zstd": "zst", ".bz2": "bz2", ".xz": "xz"}
# JSON lines under a compression are named after it alone.
KINDS |= {
    base + ending: kind if KINDS[base] == "jsonl" else f"{KINDS[base]}+{kind}"
    for base in [base for base in KINDS if base != ".parquet"]
    for ending, kind in _COMPRESSIONS.items()
}
_KNOWN = ".parquet; .jsonl, .json, .ndjson, .csv, .tsv, .txt, .md, .rst, each also with .gz, .zst, .bz2, .xz"
_SPLIT_WORDS = {"train": "train", "test": "test"} | dict.fromkeys(("valid", "validation", "val", "dev"), "valid")


def kind_of(path: str) -> str | None:
    """The reader for a file by its suffix: jsonl, csv, parquet, text; a compression's name (gz, zst, bz2, xz) for
    compressed JSON lines, csv+gz, text+gz and so on for the others; None for a file that is not read."""
    name = path.rsplit("/", 1)[-1].lower()
    first, second = name.rfind("."), name.rfind(".", 0, max(0, name.rfind(".")))
    longer = KINDS.get(name[second:]) if second >= 0 else None
    return longer or (KINDS.get(name[first:]) if first >= 0 else None)


def compression_of(kind: str) -> str:
    """gz, zst, bz2, xz, or "" for a kind that is not compressed as a whole."""
    name = kind.rpartition("+")[2]
    return name if name in _COMPRESSIONS.values() else ""


def generated(path: str) -> bool:
    """Whether a source is made on the machine that reads it."""
    return path.startswith(tuple(_GENERATED))


def list_files(dataset: Dataset, *, folder: Path, corpora: Path, left: Omissions | None = None) -> list[FoundFile]:
    """The dataset's files, in an order that depends on their names only; omitted files are added to `left`.

    Relative paths are looked up in the working folder, then in `folder` (the blend file's). Generated text is written
    to `corpora`. Raises UserError if there is nothing to read.
    """
    where = f"dataset {dataset.name!r}"
    left = Omissions() if left is None else left
    for scheme, write in _GENERATED.items():
        if dataset.path.startswith(scheme):
            return _local(str(write(dataset.path, corpora)), dataset, where, left)
    if dataset.path.startswith("hf://"):
        return hub_files(*_hub_listing(dataset, where, left), dataset, where, left)
    if is_remote(dataset.path):
        return _remote(dataset, where, left)
    return _local(find_local(dataset.path, folder), dataset, where, left)


def list_splits(dataset: Dataset, *, folder: Path, corpora: Path) -> dict[str, list[FoundFile]]:
    """The dataset's files by its own splits: those of a repository's card, else those in the files' names ("" for files
    without one). If the blend names a split, only that one, as ""."""
    if dataset.split is None and dataset.path.startswith("hf://"):
        where = f"dataset {dataset.name!r}"
        below, configs = _hub_listing(dataset, where, Omissions())
        subset = _card_subset(dataset, configs)
        names = dict.fromkeys(split for split, _ in configs.get(subset or "", ()))
        if names:
            return {
                split: hub_files(below, configs, replace(dataset, split=split), where, Omissions()) for split in names
            }
    files = list_files(dataset, folder=folder, corpora=corpora)
    if dataset.split is not None:
        return {"": files}
    root = _common_folder([file.path for file in files])
    found: dict[str, list[FoundFile]] = {}
    for file in files:
        found.setdefault(_split_word(file.path.removeprefix(root)) or "", []).append(file)
    return found


def uri_of(dataset: Dataset, folder: Path) -> str:
    """Where a dataset is for somebody in another folder, as a later step may be: its URL, or an absolute path."""
    return dataset.path if "://" in dataset.path else find_local(dataset.path, folder)


def find_local(path: str, folder: Path) -> str:
    """An absolute path for a local path or pattern: in the working folder, else in `folder`."""
    given = expand_user(path.removeprefix(LOCAL))
    places = [given] if given.is_absolute() else [Path.cwd() / given, folder / given]
    return str(next((place for place in places if place.exists() or matching(place)), places[-1]))


def _local(path: str, dataset: Dataset, where: str, left: Omissions) -> list[FoundFile]:
    root = Path(path)
    if root.is_dir():
        if dataset.subset:
            root = root / dataset.subset
            if not root.is_dir():
                raise UserError(f"{where}: there is no folder {root} for the subset {dataset.subset!r}.")
        names = local_files_below(root, left)
        taken = by_split(main_files(names, left), dataset.split, where, left)
        return _readable([names[name].absolute() for name in sorted(taken)], where, root)
    if dataset.subset:
        raise UserError(f"{where}: subset {dataset.subset!r}: {dataset.path} is no folder that could have one.")
    if root.exists():  # a file, whatever split its name says; or something that can't be read as one
        return _readable([root.absolute()], where)
    found = matching(root, left)
    if not found:
        raise UserError(f"{where}: no file matches {dataset.path}.", hint=f"Looked in {root.parent}.")
    taken = by_split(main_files(map(str, found), left), dataset.split, where, left, by_pattern=True)
    return _readable([Path(name).absolute() for name in taken], where, root)


def _readable(paths: Sequence[Path], where: str, root: Path | None = None) -> list[FoundFile]:
    if not paths:
        raise UserError(f"{where}: no file with a known ending in {root}.", hint=f"Known: {_KNOWN}.")
    found = []
    for path in paths:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode):
            raise UserError(f"{where}: {path} is {kind_of_file(facts.st_mode)}, not a regular file.")
        if kind_of(path.name) is None:
            raise UserError(f"{where}: {path} has no known ending.", hint=f"Known: {_KNOWN}.")
        found.append(FoundFile(str(path), facts.st_size))
    return found


def _remote(dataset: Dataset, where: str, left: Omissions) -> list[FoundFile]:
    url = dataset.path
    fs, inner = filesystem(url)
    try:
        listed = remote_files(fs, inner, left)
    except Exception as error:  # each store raises its own
        raise unlistable(url, where, error) from error
    below = {
        _without_secrets(name, url): replace(file, path=_without_secrets(_with_host(fs, file.path, url), url))
        for name, file in listed.items()
    }
    if dataset.subset:
        folder = f"{dataset.subset.strip('/')}/"
        inside = {name: file for name, file in below.items() if name.startswith(folder)}
        if not inside:
            raise UserError(f"{where}: there is no folder {url}/{folder} for the subset {dataset.subset!r}.")
        _leave(below, inside, f"not of subset {dataset.subset}", left)
        below = {name.removeprefix(folder): file for name, file in inside.items()}
    return chosen(below, dataset, where, left)


def _with_host(fs: Any, path: str, url: str) -> str:
    """The address of a file that was listed below `url`. File systems that connect to a host (ftp, sftp, hdfs) list
    paths without it, and one without a host can't be opened."""
    if not fs._get_kwargs_from_urls(url):
        return path
    inner = fs._strip_protocol(path)
    scheme, _, rest = url.partition("://")
    _, _, below = inner.lstrip("/").partition("/")  # abfs keeps the container, which stands before the @ of its host
    for tail in (inner.lstrip("/"), below):
        address = f"{scheme}://{rest.partition('/')[0]}/{tail}"
        if fs._strip_protocol(address) == inner:
            return address
    return path


def remote_files(fs: Any, inner: str, left: Omissions) -> dict[str, FoundFile]:
    """Relative path → file, of the files below a path of a remote store, or of those that match it if it does not
    exist."""
    if not is_pattern(inner) or fs.exists(inner):
        below = files_below(fs, inner, left)
        if not below and not left.counts:
            fs.info(inner)  # some stores list nothing for a missing or unreachable path: this raises
        return below
    # The part that exists is taken as it is: its brackets are no pattern.
    parts = inner.split("/")
    folders = ["/".join(parts[:n]) for n in range(len(parts))]
    literal = max((n for n, folder in enumerate(folders) if is_pattern(folder) and fs.exists(folder)), default=0)
    pattern = "/".join([*(glob.escape(part) for part in parts[:literal]), *parts[literal:]])
    matches = {p: i for p, i in fs.glob(pattern, detail=True).items() if i["type"] == "file"}
    return {p: found_at(fs, p, i) for p, i in matches.items() if "/." not in p}


def chosen(below: dict[str, FoundFile], dataset: Dataset, where: str, left: Omissions) -> list[FoundFile]:
    """Those of a remote folder's files (relative path → file) that belong to the dataset's split and can be read."""
    names = main_files(below, left)
    if not names:
        raise UserError(f"{where}: nothing to read in {dataset.path}.", hint=f"Known endings: {_KNOWN}.")
    if names == [dataset.path.rpartition("/")[2]]:  # the path names the file, whatever split its name says
        return [below[names[0]]]
    taken = by_split(names, dataset.split, where, left, by_pattern=is_pattern(dataset.path))
    return [below[name] for name in sorted(taken)]


_TIERS = ("files with rows", ".json files", "plain text")


def main_files(names: Iterable[str], left: Omissions) -> list[str]:
    """Of a folder's files those with rows; without any the .json ones (otherwise metadata); without any plain text
    (otherwise a README)."""
    tiers: dict[int, list[str]] = {}
    for name in names:
        kind = kind_of(name)
        if kind is None:
            left.add(name, "no known ending")
        else:
            tiers.setdefault(2 if kind.startswith("text") else int(name.lower().endswith(".json")), []).append(name)
    if not tiers:
        return []
    best = min(tiers)
    for tier in sorted(tiers.keys() - {best}):
        for name in tiers[tier]:
            left.add(name, f"{_TIERS[tier]} beside {_TIERS[best]}")
    return tiers[best]


def by_split(
    paths: list[str], split: str | None, where: str, left: Omissions, *, by_pattern: bool = False
) -> list[str]:
    """The paths of a split, by the split names in them; without any such name, all are "train".

    The single file of a folder, or those of a pattern (`by_pattern`), are of any split unless their names say
    otherwise. Raises UserError for a split of which there is no file.
    """
    if split is None or not paths:
        return paths
    root = _common_folder(paths) if by_pattern else ""
    words = {path: _split_word(path.removeprefix(root)) for path in paths}
    wanted = _SPLIT_WORDS.get(split, split)
    if by_pattern or len(paths) == 1:
        named = any(words.values()) and wanted in _SPLIT_WORDS.values()
    else:
        named = split != "train" or any(words.values())
    if not named:
        return paths
    chosen = [path for path, word in words.items() if word == wanted]
    if not chosen:
        known = sorted({word for word in words.values() if word}) or ["train"]
        hint = (
            "A file's name says its split. To read it all the same leave the split out, or name that one file as path."
        )
        raise UserError(
            f"{where}: no split {split!r}. {near(split, known)}",
            hint=hint if by_pattern or len(paths) == 1 else None,
        )
    for path, word in words.items():
        if word != wanted:
            left.add(path, f"not of split {split}")
    return chosen


def _common_folder(paths: Sequence[str]) -> str:
    """The folder that all paths or URLs have in common, with its final slash. (os.path.commonpath takes one of a URL's
    two slashes away, and then is no beginning of it.)"""
    same = os.path.commonprefix([path[: path.rfind("/") + 1] for path in paths])  # noqa: RUF071  (cut to a folder below)
    return same[: same.rfind("/") + 1]


def _split_word(path: str) -> str | None:
    return next((_SPLIT_WORDS[w] for w in re.split(r"[^a-z]+", path.lower()) if w in _SPLIT_WORDS), None)


def _hub_listing(
    dataset: Dataset, where: str, left: Omissions
) -> tuple[dict[str, FoundFile], dict[str, list[tuple[str, str]]]]:
    """The arguments of `hub_files`: the files, and the configs in the card, of hf://owner/name[@revision][/path] (with
    or without `datasets/` before it)."""
    parts = dataset.path.removeprefix("hf://").removeprefix("datasets/").rstrip("/").split("/")
    if len(parts) < 2:
        raise UserError(f"{where}: {dataset.path} is not hf://owner/name.")
    url = f"hf://datasets/{parts[0]}/{parts[1]}"
    fs, root = filesystem(url)
    try:
        below = remote_files(fs, "/".join([root, *parts[2:]]), left)
        card = f"{root}/README.md"
        # A path inside the repository selects the files; the card's patterns apply to the whole repository.
        known = not parts[2:] and fs.exists(card)
        configs = _card_configs(fs.cat_file(card).decode("utf-8", "replace")) if known else {}
    except Exception as error:  # each HTTP library raises its own
        raise unlistable(dataset.path, where, error) from error
    return below, configs


def _card_subset(dataset: Dataset, configs: dict[str, list[tuple[str, str]]]) -> str | None:
    subset = dataset.subset or (next(iter(configs)) if len(configs) == 1 else None)
    return subset or ("default" if "default" in configs else None)


def hub_files(
    below: dict[str, FoundFile],
    configs: dict[str, list[tuple[str, str]]],
    dataset: Dataset,
    where: str,
    left: Omissions,
) -> list[FoundFile]:
    """The files of a subset and split of a Hugging Face repository.

    `below` maps paths in the repository to files; `configs` is its card's: subset → (split, pattern) pairs. Without
    a card, a subset is a folder.
    """
    subset = _card_subset(dataset, configs)
    if configs and subset in configs:
        if not configs[subset]:  # it has a data_dir, which does not tell the splits
            raise UserError(
                f"{where}: the card of {dataset.path} lists no files for the subset {subset!r}.",
                hint="Name its folder as the path: hf://owner/name/folder.",
            )
        split = dataset.split or "train"
        patterns = [pattern for name, pattern in configs[subset] if name == split]
        if not patterns:
            raise UserError(f"{where}: no split {split!r}. {near(split, [s for s, _ in configs[subset]])}")
        parts = [pattern.removeprefix("./").split("/") for pattern in patterns]
        matching = {
            name: file for name, file in below.items() if any(_matches(name.split("/"), part) for part in parts)
        }
        _leave(below, matching, f"not of subset {subset}, split {split}", left)
        return chosen(matching, Dataset(dataset.name, dataset.path), where, left)
    if configs:
        raise UserError(f"{where}: no subset {dataset.subset!r}. {near(dataset.subset or '', configs)}")
    inside = {name: f for name, f in below.items() if not subset or f"/{subset.lower()}/" in f"/{name.lower()}"}
    _leave(below, inside, f"not of subset {subset}", left)
    return chosen(inside, dataset, where, left)


def _leave(below: dict[str, FoundFile], taken: dict[str, FoundFile], why: str, left: Omissions) -> None:
    for name in below:
        if name not in taken:
            left.add(name, why)


def _matches(name: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a pattern: `*` is within one part, `**` any number of them."""
    if not pattern:
        return not name
    if pattern[0] == "**":
        return any(_matches(name[n:], pattern[1:]) for n in range(len(name) + 1))
    return bool(name) and fnmatch.fnmatchcase(name[0], pattern[0]) and _matches(name[1:], pattern[1:])


def _card_configs(card: str) -> dict[str, list[tuple[str, str]]]:
    """subset → [(split, pattern)] from the YAML head of a dataset card."""
    import yaml

    head = re.match(r"\ufeff?---\r?\n(.*?)\n---", card, re.DOTALL)
    values = yaml.safe_load(head[1]) if head else None
    configs: dict[str, list[tuple[str, str]]] = {}
    for entry in (values or {}).get("configs") or []:
        pairs = configs[str(entry.get("config_name", "default"))] = []
        for item in _listed(entry.get("data_files") or []):
            if isinstance(item, str):
                pairs.append(("train", item))
                continue
            split = str(item.get("split", "train"))
            pairs += [(split, str(pattern)) for pattern in _listed(item.get("path") or [])]
    return configs


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
