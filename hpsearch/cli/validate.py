"""hpsearch validate: name every mistake in study files, one line each."""

import click


@click.command("validate")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a value, e.g. training.epochs=5.")
@click.pass_context
def validate(context: click.Context, files: tuple[str, ...], overrides: tuple[str, ...]) -> None:
    """Name every mistake in a study file, with file, key, value and rule.

    FILE is the path of a TOML file, or the name of a study that comes with hpsearch. Exit code 2 if there is a mistake.
    """
    from hpsearch import catalogue
    from hpsearch.errors import UsageError

    failed = False
    for file in files:
        try:
            study = catalogue.read(file, overrides)
        except UsageError as error:
            failed = True
            click.echo(str(error), err=True)
        else:
            click.echo(f"{file}: ok, {study.summary()}")
            for caution in study.cautions():
                click.echo(f"{file}: warning: {caution}", err=True)
    if failed:
        context.exit(2)
