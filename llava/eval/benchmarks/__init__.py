"""One file a benchmark, and the table of them: what is in it can be run by name."""

from llava.eval.benchmark import Benchmark
from llava.eval.benchmarks.gqa import GQA
from llava.eval.benchmarks.llava_bench import LLAVA_BENCH
from llava.eval.benchmarks.mmbench import MMBENCH, MMBENCH_CN
from llava.eval.benchmarks.mme import MME
from llava.eval.benchmarks.mmvet import MMVET
from llava.eval.benchmarks.pope import POPE
from llava.eval.benchmarks.qbench import QBENCH
from llava.eval.benchmarks.scienceqa import SCIENCEQA
from llava.eval.benchmarks.seed import SEED
from llava.eval.benchmarks.textvqa import TEXTVQA
from llava.eval.benchmarks.vizwiz import VIZWIZ
from llava.eval.benchmarks.vqav2 import VQAV2

BENCHMARKS: tuple[Benchmark, ...] = (
    *(GQA, MMBENCH, MMBENCH_CN, MME, SCIENCEQA, TEXTVQA, SEED, MMVET, POPE, VQAV2, VIZWIZ, LLAVA_BENCH),
    QBENCH,
)
