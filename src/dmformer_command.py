"""Front door of the `dmformer` command.

Importing `dmformer` registers its models with timm, which takes seconds. The command answers help and mistakes in the
arguments before that: the package skips the registration while this module is loaded, and does it when it is needed.
"""


def main() -> None:
    """Run the command with the arguments of the process."""
    from dmformer.cli import main

    main()
