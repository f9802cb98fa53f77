"""`python -m trainer.deepspeed_bridge.build_ops`: compiles DeepSpeed's CPU communication op, which the first training run would
otherwise do in the middle of its start (over a minute, on every worker)."""

import shutil
import sys

import torch

from trainer.deepspeed_bridge.environment import prepare_environment


def main() -> int:
    """Builds the op, or says what is missing. A machine with a GPU does not need it."""
    if torch.cuda.is_available():
        return 0
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        print(
            f"error: {' and '.join(missing)} not found. Install a C++ compiler (Debian: apt install g++).",
            file=sys.stderr,
        )
        return 2
    prepare_environment()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
