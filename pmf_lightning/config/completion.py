"""Tab completion of pmf: the script of each shell, and the completions of a line; imports Hydra, but not torch."""

from collections.abc import Sequence

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.bash_completion import BashCompletion
from hydra._internal.utils import create_config_search_path
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from pmf_lightning.config import search_path
from pmf_lightning.config.groups import command_file
from pmf_lightning.utils.errors import UserError

_QUERY = "query"
SCRIPTS = {
    "bash": """# eval "$(pmf completion bash)" in ~/.bashrc
_pmf_completion() {
    local IFS=$'\\n'
    COMPREPLY=($("${COMP_WORDS[0]}" completion query "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
    if [ "$COMP_CWORD" = 1 ]; then COMPREPLY=("${COMPREPLY[@]/%/ }"); fi
}
COMP_WORDBREAKS=${COMP_WORDBREAKS//=/}
complete -o nospace -o default -F _pmf_completion pmf""",
    "zsh": """# eval "$(pmf completion zsh)" in ~/.zshrc, after compinit
_pmf_completion() {
    local -a found
    found=(${(f)"$(${words[1]} completion query "${(j: :)words[1,CURRENT-1]} $PREFIX" 2>/dev/null)"})
    if (( $#found )); then compadd -Q -S '' -- $found; else _files; fi
}
compdef _pmf_completion pmf""",
    "fish": """# pmf completion fish | source   in ~/.config/fish/config.fish
complete --command pmf --arguments '(pmf completion query (commandline --cut-at-cursor --current-process) 2>/dev/null)'\
""",
}


def reply(arguments: Sequence[str], commands: Sequence[str]) -> str:
    """Return what ``pmf completion`` prints: a script, or for "query" the completions of a line, one per line.

    Raises UserError for an unknown shell.
    """
    first = arguments[0] if arguments else ""
    if first == _QUERY:
        return "\n".join(completions(" ".join(arguments[1:]), commands))
    if first not in SCRIPTS:
        raise UserError(f"pmf completion {first}".strip() + f": give a shell: {', '.join(SCRIPTS)}")
    return SCRIPTS[first]


def completions(line: str, commands: Sequence[str]) -> list[str]:
    """Return the completions of the last word of a line "pmf COMMAND ..." by Hydra, [] if there are none."""
    head, _, word = line.rpartition(" ")
    words = head.split()
    if len(words) < 2:
        return [name for name in commands if name.startswith(word)]
    config_name = command_file(words[1].replace("-", "_"))
    if not (search_path.CONF / f"{config_name}.yaml").is_file():
        return []
    try:
        left, entries = search_path.taken_from(words[2:])
        with search_path.added(entries):
            search_path.register()
            loader = ConfigLoaderImpl(create_config_search_path(f"file://{search_path.CONF}"))
            return BashCompletion(loader)._query(config_name, " ".join([*left, word]))
    except (HydraException, OmegaConfBaseException, UserError, SystemExit):  # the line is not valid so far
        return []
