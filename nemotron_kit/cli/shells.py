"""The completion scripts: each hands the line to `nemotron __complete` and shows what comes back."""

from __future__ import annotations

USAGE = """\
usage: nemotron completion bash|zsh|fish

Prints a completion script. To have it in every new shell:

  bash   echo 'eval "$(nemotron completion bash)"' >> ~/.bashrc
  zsh    echo 'eval "$(nemotron completion zsh)"' >> ~/.zshrc   (after compinit)
  fish   nemotron completion fish > ~/.config/fish/completions/nemotron.fish
"""

# A word that ends in `=`, `:` or `.` goes on, so no space is put behind it. No answer: the shell completes file names.
_BASH = """\
_nemotron_complete() {
    local reply
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("$reply")
    done < <(nemotron __complete bash "${COMP_LINE:0:COMP_POINT}" 2>/dev/null)
    if [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[=:.] ]]; then
        compopt -o nospace 2>/dev/null
    fi
}
complete -o default -F _nemotron_complete nemotron
"""

_ZSH = """\
#compdef nemotron
_nemotron() {
    local reply
    local -a open closed
    while IFS= read -r reply; do
        reply="${reply//:/\\\\:}"
        reply="${reply/$'\\t'/:}"
        if [[ ${reply%%:*} == *= ]]; then open+=("$reply"); else closed+=("$reply"); fi
    done < <(nemotron __complete zsh "${(@)words[2,CURRENT]}" 2>/dev/null)
    if (( ! $#open && ! $#closed )); then _files; return; fi
    (( $#closed )) && _describe -V nemotron closed
    (( $#open )) && _describe -V nemotron open -S ''
}
compdef _nemotron nemotron
"""

_FISH = """\
function __nemotron_complete
    set -l words (commandline -opc)[2..]
    set -l answers (nemotron __complete fish $words (commandline -ct) 2>/dev/null)
    if test (count $answers) -gt 0
        printf '%s\\n' $answers
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c nemotron -f -a '(__nemotron_complete)'
"""

SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
