"""The command `hpsearch`: finds the subcommand, and turns errors into one line and an exit code.

Exit codes: 0 done (budget used, or told to stop), 1 a run failed, 2 what was given cannot be used, 75 interrupted or
the storage is away (run the same command again).
"""

import difflib
import io
import os
import pkgutil
import re
import sys
from collections.abc import Sequence

import click

from hpsearch.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, HpsearchError, UsageError, exit_code, no_room

PASSWORD = re.compile(r"(//[^\s/@:]*:)[^\s/]+(?=@)")  # of a storage's URL, which may be given where none belongs

# name -> (where the click command is, the line that `hpsearch --help` shows). Literal, so that help imports nothing.
COMMANDS = {
    "create-study": ("hpsearch.cli.study:create_study", "Create a study by name or from a TOML file."),
    "worker": ("hpsearch.cli.worker:worker", "Train trials until the budget of the study is used."),
    "pause": ("hpsearch.cli.control:pause", "Let the workers of a study wait until it is resumed."),
    "resume": ("hpsearch.cli.control:resume", "Let a study go on after pause or stop."),
    "stop": ("hpsearch.cli.control:stop", "Let the workers of a study keep a checkpoint and leave."),
    "extend": ("hpsearch.cli.control:extend", "Allow a study more trials."),
    "list": ("hpsearch.cli.study:list_studies", "List the studies of the storage, and those that can be created."),
    "status": ("hpsearch.cli.study:status", "Show how far a study is."),
    "trials": ("hpsearch.cli.study:trials", "Show the trials of a study."),
    "best": ("hpsearch.cli.study:best", "Show the best configurations of a study, and what mattered."),
    "confirm": ("hpsearch.cli.confirm:confirm", "Train the best configurations again from new seeds, and compare."),
    "final-test": ("hpsearch.cli.final_test:final_test", "Open the test split once, for the confirmed winner."),
    "export": ("hpsearch.cli.export:export", "Write the best configuration, its weights and the evidence."),
    "verify": ("hpsearch.cli.export:verify", "Check what an export claims, as far as it shows without the storage."),
    "transfer": ("hpsearch.cli.transfer:transfer", "Carry an export over to another data set, against scratch."),
    "report": ("hpsearch.cli.report:report", "Write one page with all figures and the numbers behind them."),
    "fsck": ("hpsearch.cli.fsck:fsck", "Check what is recorded about a study, and repair it."),
    "storage": ("hpsearch.cli.storage:storage", "Make a storage's tables, or copy it into another one."),
    "doctor": ("hpsearch.cli.doctor:doctor", "Tell what would go wrong in a long run."),
    "dashboard": ("hpsearch.cli.dashboard:dashboard", "Browse the studies: live pages, and optuna-dashboard."),
    "launch": ("hpsearch.cli.launch:launch", "Start workers on a cluster, by Slurm or Kubernetes."),
    "validate": ("hpsearch.cli.validate:validate", "Name every mistake in a study file."),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand's module only when that subcommand is run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names in the table's order."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The imported command, or None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = pkgutil.resolve_name(COMMANDS[cmd_name][0])
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it; a name that is none gets a suggestion."""
        if not ctx.resilient_parsing and args[0] not in COMMANDS and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            ctx.fail(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own lines, so that nothing is imported."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hpsearch")
def cli() -> None:
    """Find the best training recipe for a small image classifier.

    \b
    hpsearch create-study quickstart      a study is a question, in TOML
    hpsearch worker quickstart            start one on every device you have
    hpsearch best quickstart              the answer so far
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    _write_what_can_be_written()
    try:
        _check_text(sys.argv[1:] if arguments is None else arguments)
        code = cli.main(args=arguments, prog_name="hpsearch", standalone_mode=False)
        if sys.stdout is not None:  # None: the shell has closed it, `>&-`
            sys.stdout.flush()
        sys.exit(code or 0)
    except click.exceptions.Exit as leaving:
        sys.exit(leaving.exit_code)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except click.UsageError as error:
        _say_usage(error)
        sys.exit(EXIT_USAGE)
    except click.ClickException as error:
        _say(error.format_message())
        sys.exit(EXIT_USAGE)
    except HpsearchError as error:
        _say(str(error))
        sys.exit(exit_code(error))
    except BrokenPipeError:  # `hpsearch trials | head`
        _give_up_output()
        sys.exit(EXIT_FAILED)
    except OSError as error:
        if not no_room(error):
            raise
        _say(f"{error.strerror}{f': {error.filename}' if error.filename else ''}; make room and run the command again")
        _give_up_output()
        sys.exit(EXIT_FAILED)
    except Exception as error:
        opened = sys.modules.get("hpsearch.storage.open")  # not imported here: `hpsearch --help` needs no database
        if opened is None or not isinstance(error, opened.FAULTS):
            raise
        _say(f"the storage failed: {opened.explain(error)}; try again once that is mended")
        sys.exit(EXIT_FAILED)


def _write_what_can_be_written() -> None:
    """An encoding that lacks a sign ends no command."""
    for output in (sys.stdout, sys.stderr):
        if isinstance(output, io.TextIOWrapper):  # None: the shell has closed it
            output.reconfigure(errors="replace")


def _check_text(arguments: Sequence[str]) -> None:
    """Raise UsageError if something given is no UTF-8: it could be recorded, and then neither shown nor written."""
    given = [(repr(text) if "@" not in text else "an argument", text) for text in arguments]  # a password may be in it
    given += [(name, text) for name, text in os.environ.items() if name.startswith("HPSEARCH_")]  # secrets among them
    for name, text in given:
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # how Python spells bytes that are no text
            raise UsageError(f"{name}: is not UTF-8; write it in UTF-8, and rename files whose names are not")


def _say_usage(error: click.UsageError) -> None:
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        click.echo(error.format_message(), err=True)
        return
    path = error.ctx.command_path if error.ctx else "hpsearch"
    if isinstance(error, click.NoSuchOption) and error.ctx:
        hidden = {one for option in error.ctx.command.params if getattr(option, "hidden", False) for one in option.opts}
        alike = [option for option in error.possibilities or () if option not in hidden]
        error = click.NoSuchOption(error.option_name, possibilities=alike, ctx=error.ctx)
    _say(f"{' '.join(error.format_message().split())} (see `{path} --help`)")


def _give_up_output() -> None:
    """Let Python's last attempt to write what is left of the output succeed, as it would complain again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _say(message: str) -> None:
    for line in PASSWORD.sub(r"\1***", message).splitlines():
        click.echo(f"hpsearch: {line}", err=True)
