"""`python -m cluster.validate [--strict] [--external KIND/NAME]... FILE...`: prints findings; exit code 1 if there are any."""

import argparse
import sys
from pathlib import Path

from cluster.validate import check
from cluster.validate.core import INSTALL, has_schema, is_installed
from cluster.validate.documents import Document, read
from data_pipeline.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Checks the files together and returns the exit code: 0, 1 with findings, 2 for a file without YAML."""
    parser = argparse.ArgumentParser(
        prog="python -m cluster.validate", description="Checks documents of Kubernetes and KubeRay."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="YAML or JSON; - is the standard input")
    parser.add_argument("--strict", action="store_true", help="also what Scion asks of its own manifests")
    parser.add_argument(
        "--external",
        action="append",
        default=[],
        metavar="KIND/NAME",
        help="what the documents may refer to without defining it",
    )
    given = parser.parse_args(arguments)
    try:
        documents = [one for file in given.files for one in read(sys.stdin.read() if file == "-" else _text(file), file)]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    findings = check(documents, strict=given.strict, external=given.external)
    for finding in findings:
        print(finding)
    known = [Document(one) for one in documents]
    if skipped := sorted({one.kind for one in known if not has_schema(one.api_version, one.kind)}):
        reason = "there is no schema here" if is_installed() else f"kubernetes-validate is not installed: {INSTALL}"
        print(f"not checked: {', '.join(skipped)} ({reason})", file=sys.stderr)
    print(f"{len(documents)} documents, {len(findings)} findings", file=sys.stderr)
    return 1 if findings else 0


def _text(file: str) -> str:
    """The text of a file; ConfigError if it cannot be read."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read ({error}).", file, "Name a YAML file.") from error


if __name__ == "__main__":
    sys.exit(main())
