"""`python -m trainer.deepspeed_bridge.build_ops`: compiles DeepSpeed's CPU communication op.

Without it the first training run compiles it at its start, for over a minute, on every worker.
"""

import shutil
import sys

import torch

from trainer.deepspeed_bridge.environment import prepare_environment


def main() -> int:
    """Builds the op, or reports the missing tools. A machine with a GPU does not need it."""
    if torch.cuda.is_available():
        return 0
    missing = [tool for tool in ("g++", "ninja") if shutil.which(tool) is None]
    if missing:
        names = " and ".join(missing)
        print(f"error: {names} not found. Install a C++ compiler (Debian: apt install g++).", file=sys.stderr)
        return 2
    prepare_environment()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
