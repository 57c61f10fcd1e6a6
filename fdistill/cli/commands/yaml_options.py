"""The parser of options reads YAML, in files and on the command line, as everything else here does."""

import yaml
from jsonargparse import set_dumper, set_loader
from jsonargparse._optionals import get_omegaconf_loader  # what makes ${...} of several files find each other

from fdistill.core.yaml_files import is_ambiguous, parse_yaml, yaml_of


def read_options_as_yaml_files() -> None:
    """Give jsonargparse the one reader, and a writer whose files it reads as the same."""
    relative = get_omegaconf_loader("omegaconf+")

    def load(text: str) -> object:
        if is_ambiguous(text):  # on the command line a value is what the option takes it for
            return text
        value = parse_yaml(text)
        keys = list(value) if isinstance(value, dict) and all(item is None for item in value.values()) else []
        is_text = text.strip() == f"{keys[0]}:" if len(keys) == 1 and ":" in text else bool(keys) and ":" not in text
        return text if is_text else value  # a: and {a,b} are texts on the command line

    def load_with_references(text: str) -> object:
        value = load(text)
        return relative(yaml_of(value)) if isinstance(value, dict) and "${" in text else value

    set_loader("yaml", load, (yaml.YAMLError,))
    set_loader("omegaconf+", load_with_references, (yaml.YAMLError,))
    set_dumper("yaml", yaml_of)
