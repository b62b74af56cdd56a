"""A registry whose process can die at any call that changes files: nothing acknowledged is lost, nothing torn."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from nemotron_kit.artifacts.registry import LocalRegistry
from nemotron_kit.artifacts.store import Draft

from ...conftest import examples
from ...file_calls import Died, dying_at, stepping_in
from .conftest import Maker


def draft(folder: Path, name: str, content: str, producer: str = "local") -> Draft:
    root = folder / f"{name}-{content}"
    root.mkdir(exist_ok=True)
    if not (root / "data").exists():
        (root / "data").write_text(content)
    return Draft(name, "T", root, root, {}, {}, "2026", producer)


class Registry(RuleBasedStateMachine):
    """Contents by name and version, and aliases, as they must be found."""

    @initialize()
    def begin(self) -> None:
        self.kept = tempfile.TemporaryDirectory()
        self.folder = Path(self.kept.name)
        self.root = self.folder / "registry"
        self.contents: dict[str, list[str]] = {}
        self.aliases: dict[tuple[str, str], int] = {}

    def teardown(self) -> None:
        if hasattr(self, "kept"):
            self.kept.cleanup()

    names = st.sampled_from(["A", "B"])
    texts = st.sampled_from(["1", "2", "3", "4"])

    def expected(self, name: str, text: str) -> int:
        found = self.contents.setdefault(name, [])
        if text not in found:
            found.append(text)
        return found.index(text)

    @rule(name=names, text=texts, run=st.sampled_from(["local", "run-1"]))
    def save(self, name: str, text: str, run: str) -> None:
        pin = LocalRegistry(self.root).commit(draft(self.folder, name, text, run))
        assert pin.version == self.expected(name, text)
        if run != "local":
            assert LocalRegistry(self.root).resolve(f"{name}@run:{run}") == pin

    @rule(name=names, text=texts, k=st.integers(1, 50), after=st.booleans(), run=st.sampled_from(["local", "run-1"]))
    def die_while_saving(self, name: str, text: str, k: int, after: bool, run: str) -> None:
        made = draft(self.folder, name, text, run)
        try:
            with stepping_in(dying_at(k, after=after)):
                pin = LocalRegistry(self.root).commit(made)
        except Died:
            found = LocalRegistry(self.root).versions(name)
            known = self.contents.get(name, [])
            assert found[: len(known)] == list(range(len(known)))
            assert len(found) in (len(known), len(known) + 1)
            if len(found) > len(known):
                assert self.expected(name, text) == found[-1]
        else:
            assert pin.version == self.expected(name, text)

    @rule(name=names, alias=st.sampled_from(["x", "y"]), data=st.data(), k=st.integers(1, 20), after=st.booleans())
    def move_alias(self, name: str, alias: str, data: st.DataObject, k: int, after: bool) -> None:
        if not self.contents.get(name):
            return
        version = data.draw(st.integers(0, len(self.contents[name]) - 1))
        before = self.aliases.get((name, alias))
        try:
            with stepping_in(dying_at(k, after=after)):
                LocalRegistry(self.root).set_alias(name, alias, version)
        except Died:
            found = LocalRegistry(self.root).aliases(name).get(alias)
            assert found in (before, version)
            if found is not None:
                self.aliases[name, alias] = found
        else:
            self.aliases[name, alias] = version

    @rule(lease=st.sampled_from([0.0, 3600.0]))
    def collect(self, lease: float) -> None:
        LocalRegistry(self.root).gc(lease)
        if lease == 0:
            assert not list(self.root.rglob(".tmp-*"))

    @invariant()
    def all_is_found(self) -> None:
        if not hasattr(self, "root"):
            return
        registry = LocalRegistry(self.root)
        kept = {name: texts for name, texts in self.contents.items() if texts}
        assert registry.names() == sorted(kept)
        for name, texts in kept.items():
            assert registry.versions(name) == list(range(len(texts)))
            assert registry.resolve(name).version == len(texts) - 1
            for version, text in enumerate(texts):
                assert Path(registry.resolve(f"{name}:v{version}").path).name == f"{name}-{text}"
        found = {(name, alias): version for name in kept for alias, version in registry.aliases(name).items()}
        assert found == self.aliases


Registry.TestCase.settings = settings(
    max_examples=examples(25), stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRegistry = Registry.TestCase


@pytest.mark.parametrize("after", [False, True])
def test_every_single_call_of_a_first_save(tmp_path: Path, after: bool) -> None:
    """Death at each call in turn: what is left is either nothing visible or the whole version, and a retry works."""
    with stepping_in(dying_at(10**6)) as made:
        LocalRegistry(tmp_path / "whole").commit(draft(tmp_path, "A", "1", "run-1"))
    assert {"mkdir", "fsync", "rename", "replace"} <= set(made)
    for k in range(1, len(made) + 1):
        registry = LocalRegistry(tmp_path / str(k))
        with pytest.raises(Died), stepping_in(dying_at(k, after=after)):
            registry.commit(draft(tmp_path, "A", "1", "run-1"))
        again = LocalRegistry(tmp_path / str(k))
        assert again.names() in ([], ["A"])
        if again.names():
            again.resolve("A:v0")
        assert again.commit(draft(tmp_path, "A", "1", "run-1")).label == "A:v0"
        assert again.resolve("A@run:run-1").version == 0
        assert again.versions("A") == [0]


def test_a_rename_whose_answer_was_lost(registry: LocalRegistry, make: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file server may do a rename, lose its answer, and refuse the client's second try."""
    real = os.rename

    def lossy(source: str, target: str) -> None:
        real(source, target)
        real(source, target)

    monkeypatch.setattr(os, "rename", lossy)
    assert registry.commit(make.draft("Data", "a")).version == 0
    assert registry.commit(make.draft("Data", "b")).version == 1
    assert registry.versions("Data") == [0, 1]
