"""Scripts run by torchrun on the CPU."""

import os
import subprocess
import sys
from pathlib import Path


def torchrun(script, *arguments, processes):
    """Runs a script in so many gloo processes; torchrun finds a free port itself."""
    environment = {
        **os.environ,
        "ACCELERATE_USE_CPU": "yes",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).parent.parent),
    }
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes)]
    launcher += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0"]
    launcher += ["--local-addr", "127.0.0.1"]
    command = [sys.executable, *launcher, str(script), *map(str, arguments)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=250)
    assert result.returncode == 0, result.stderr[-4000:]
    return result
