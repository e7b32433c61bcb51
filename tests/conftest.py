"""Where the tests find their cases."""

import atexit
import gc
import os
import shutil
import tempfile
from pathlib import Path

# Several tests run at once, on tiny models: threads of their own would only wait for each other.
for name in ("OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS"):
    os.environ.setdefault(name, "1")
# Compiling takes most of the time of JAX's tests, on models that run in a millisecond either way.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# These take a quarter of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1")
# Many tests compile the same programs: pytest's workers share what one of them compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jax-programs-")
    os.environ |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1"}
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# Graphs of several hundred tests are millions of objects, which the garbage collector need not visit all the time.
gc.set_threshold(100_000, 50, 100)

import pytest

from distilbert.core.checkpoint import load, write_checkpoint
from distilbert.core.spec import DISTILBERT, parameters

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).parents[2] / "shared"  # real data and trained checkpoints, on the project's machines only


@pytest.fixture
def shared() -> Path:
    if not SHARED.is_dir():
        pytest.skip("needs the project's real data and checkpoints, which are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def shallow(tmp_path_factory):
    """A golden checkpoint's folder by case, with two of its three layers and its tokenizer, if any: compiling takes most of the time."""
    from backends import head_of  # which imports this module

    made = {}

    def make(case):
        if case not in made:
            options = {"overrides": {}, "ignore_mismatched_sizes": False, "family": DISTILBERT}
            folder = GOLDEN / f"distilbert-{case}"
            config, tensors, _ = load(folder, head_of(case), config=None, **options)
            config.n_layers = 2
            kept = {row.name: tensors[row.name] for row in parameters(config, head_of(case)) if row.name in tensors}
            made[case] = tmp_path_factory.mktemp(case)
            write_checkpoint(made[case], config, kept, head=head_of(case))
            for name in ("vocab.txt", "tokenizer_config.json"):
                if (folder / name).is_file():
                    shutil.copy(folder / name, made[case])
        return made[case]

    return make
