"""`scion JOB CONFIG [key=value ...]`.

Exit codes: 0 success, 2 a mistake of the user, 1 a failure, 75 a training that the user stopped and can resume, 130 an
interruption.
"""

import importlib
import signal
import sys
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

from ray_jobs import stop_request
from ray_jobs.job import Command, check_job, commands, jobs, module_of

HELP = """usage: scion JOB CONFIG [key=value ...]
       scion COMMAND [ARGUMENT ...]

Jobs:
{jobs}

Commands:
{commands}

CONFIG is a YAML file such as ray_jobs/conf/demo.yaml. The command line overrides any of its keys, and `scion JOB --help` prints
the keys of a job:
  scion pipeline ray_jobs/conf/demo.yaml method=focus output=/tmp/run pretrain.train.steps=100
With RAY_ADDRESS set a job runs on that cluster, else on a Ray of its own that ends with it."""
_BUILT_IN = {
    "methods": Command(arguments="", summary="list the methods of every table, and their papers"),
    "config": Command(arguments="[SECTION ...]", summary="every key with its type, its default and its meaning"),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command and returns its exit code; a mistake of the user never shows a traceback."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0 if arguments else 2
    if arguments == ["--version"]:
        print(version("scion-lm"))
        return 0
    from data_pipeline.errors import ScionError, Stopped, reason  # the help text does not wait for imports

    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    stop_request.clear_request()  # of an earlier command in the same process
    before = {number: signal.signal(number, _terminate) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        dispatch(arguments)
        return 0
    except Stopped as stopped:
        errors.print(_escaped(str(stopped)))
        return stopped.exit_code
    except ScionError as error:
        errors.print(f"[bold red]error:[/bold red] {_escaped(str(error))}")
        return error.exit_code
    except PermissionError as error:
        errors.print(f"[bold red]error:[/bold red] access is denied: {_escaped(str(error))}")
        return 1
    except OSError as error:  # Ray wraps the error of a task on a worker
        failure = _escaped(reason(getattr(error, "cause", None) or error))
        errors.print(f"[bold red]error:[/bold red] the disk or the storage failed ({failure}). The same command resumes.")
        return 1
    except KeyboardInterrupt:
        errors.print("interrupted" if arguments[0] == "serve" else "interrupted; the same command resumes")
        return 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _help() -> str:
    """The text of `scion --help`."""
    of_jobs = [f"  {name:<10} {job.summary}" for name, job in jobs().items()]
    of_commands = [
        f"  {f'{name} {command.arguments}':<56} {command.summary}" for name, command in (_BUILT_IN | commands()).items()
    ]
    return HELP.format(jobs="\n".join(of_jobs), commands="\n".join(of_commands))


def run_module(file: str) -> NoReturn:
    """Runs `python -m ray_jobs.JOB CONFIG`, for `ray job submit` where no command `scion` is installed."""
    sys.exit(main([Path(file).stem, *sys.argv[1:]]))


def dispatch(arguments: list[str]) -> None:
    """Runs what the command line names: help, a command or a job; ConfigError for an unknown job or a missing configuration."""
    from data_pipeline.errors import ConfigError

    job, *rest = arguments
    console = Console(highlight=False, soft_wrap=True)
    if job == "methods":
        _print_methods(console)
        return
    if job == "config" or _asks_for_help(rest):
        _print_help(job, rest, console)
        return
    if job in commands():
        warnings.filterwarnings("ignore")
        importlib.import_module(module_of(job)).command(rest, console)
        return
    check_job(job, [*commands(), *_BUILT_IN])
    if not rest:
        raise ConfigError("the configuration file is missing.", f"scion {job}", "Name one: ray_jobs/conf/demo.yaml.")
    _run(job, *_configuration(job, rest), console)


def _configuration(job: str, rest: list[str]) -> tuple[str | None, list[str]]:
    """The configuration file and what overrides it. A job that can do without one takes a model's folder or settings alone."""
    first, *others = rest
    instead = jobs()[job].instead if not jobs()[job].required_with_instead else ()
    if instead and "=" in first:
        return None, rest
    if instead and ("://" in first or Path(first).is_dir()):
        return None, [f"{instead[0]}={first}", *others]
    return first, others


def _asks_for_help(arguments: list[str]) -> bool:
    return any(argument in ("-h", "--help") for argument in arguments)


def _print_help(job: str, rest: list[str], console: Console) -> None:
    """Prints the help of a job or command, or the keys of the configuration for `scion config`."""
    from ray_jobs import help_text

    if job == "config" and not _asks_for_help(rest):
        help_text.print_keys(rest, console)
    elif job in commands():
        command = commands()[job]
        console.print(f"usage: scion {job} {command.arguments}\n\n{command.summary}", markup=False)
    elif job == "config":
        console.print("usage: scion config [SECTION ...], e.g. scion config pretrain.train", markup=False)
    else:
        check_job(job, [*commands(), *_BUILT_IN])
        help_text.print_job(job, console)


def _run(job: str, path: str | None, overrides: list[str], console: Console) -> None:
    from ray_jobs.run import load_config, run_job

    warnings.filterwarnings("ignore")
    loaded = load_config(path, overrides, job)
    # Ray puts a handler of its own there, which exits with 15.
    run_job(job, loaded, console, started=lambda: signal.signal(signal.SIGTERM, _terminate))


def _print_methods(console: Console) -> None:
    """Prints the rows of every table, under the key that chooses among them."""
    from data_pipeline.pairs.builders import BUILDERS
    from trainer.evaluation import METRICS
    from trainer.merging import MERGES
    from trainer.objectives import OBJECTIVES
    from trainer.transfer.methods import METHODS
    from trainer.word_vectors import VECTORS

    vector_losses = {name: entry for name, entry in OBJECTIVES.items() if entry.config().needs.vectors}
    tables: dict[str, Mapping[str, Any]] = {
        "method": METHODS, "transfer.methods.*.kind": VECTORS, "embed.objective": vector_losses, "embed.builder": BUILDERS,
        "merge.method": MERGES, "evaluate.metrics": METRICS,
    }  # fmt: skip
    for key, table in tables.items():
        console.print(f"{key}:", markup=False)
        for name, entry in table.items():
            console.print(f"  {name:<17} {entry.paper}", markup=False)


def _terminate(signum: int, frame: object) -> None:
    """Handles SIGTERM (`ray job stop`, the end of a pod) and Ctrl-C.

    A training saves and stops; any other job, and a second signal, unwinds and clears what is half-written. Ray's C++ part
    swallows every exception but KeyboardInterrupt.
    """
    if not stop_request.request_stop():
        raise KeyboardInterrupt


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
