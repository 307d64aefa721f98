"""The training recipes: the commands that they print, their settings, and how they start and log."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from llava.train.arguments import parse_arguments

ROOT = Path(__file__).parents[2]
TRIM = "finetune_8gpu_TRIM.sh"
LIMIT_S = 60

# As LLaVA's and TRIM's own scripts have them.
COMMON: dict[str, Any] = {
    "vision_tower": "openai/clip-vit-large-patch14-336",
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_use_im_start_end": False,
    "mm_use_im_patch_token": False,
    "bf16": True,
    "num_train_epochs": 1,
    "per_device_eval_batch_size": 4,
    "evaluation_strategy": "no",
    "save_strategy": "steps",
    "save_total_limit": 1,
    "weight_decay": 0,
    "warmup_ratio": 0.03,
    "lr_scheduler_type": "cosine",
    "logging_steps": 1,
    "model_max_length": 2048,
    "dataloader_num_workers": 4,
    "lazy_preprocess": True,
    "bits": 16,
    "lora_enable": False,
    "mm_projector_lr": None,
    "tune_mm_mlp_adapter": False,
    "mm_vision_token_reduce_func": None,
}
FINE_TUNING = {
    **COMMON,
    "version": "v1",
    "data_path": "playground/data/llava_v1_5_mix665k.json",
    "image_folder": "playground/data",
    "image_aspect_ratio": "pad",
    "group_by_modality_length": True,
    "per_device_train_batch_size": 16,
    "gradient_accumulation_steps": 1,
    "learning_rate": 2e-5,
    "save_steps": 50000,
}
LORA = {"lora_enable": True, "lora_r": 128, "lora_alpha": 256, "mm_projector_lr": 2e-5, "learning_rate": 2e-4}
VICUNA = {
    "model_name_or_path": "lmsys/vicuna-13b-v1.5",
    "pretrain_mm_mlp_adapter": "checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin",
}
TASK = {"model_name_or_path": "liuhaotian/llava-v1.5-13b", "pretrain_mm_mlp_adapter": None}
VICUNA_7B = {
    "model_name_or_path": "lmsys/vicuna-7b-v1.5",
    "pretrain_mm_mlp_adapter": "checkpoints/llava-v1.5-7b-pretrain/mm_projector.bin",
}
PRETRAINING = {
    **COMMON,
    "model_name_or_path": "lmsys/vicuna-13b-v1.5",
    "pretrain_mm_mlp_adapter": None,
    "output_dir": "checkpoints/llava-v1.5-13b-pretrain",
    "version": "plain",
    "data_path": "playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json",
    "image_folder": "playground/data/LLaVA-Pretrain/images",
    "image_aspect_ratio": "square",
    "group_by_modality_length": False,
    "tune_mm_mlp_adapter": True,
    "per_device_train_batch_size": 32,
    "gradient_accumulation_steps": 1,
    "learning_rate": 1e-3,
    "save_steps": 24000,
}
SMALL_LORA = {"lora_enable": True, "lora_r": 64, "lora_alpha": 16, "lora_dropout": 0.05}
# ZeRO's stage, and all other settings.
RECIPES: dict[str, tuple[int, dict[str, Any]]] = {
    "v1_5/pretrain.sh": (2, PRETRAINING),
    "v1_5/finetune.sh": (3, FINE_TUNING | VICUNA | {"output_dir": "checkpoints/llava-v1.5-13b"}),
    "v1_5/finetune_lora.sh": (
        3,
        FINE_TUNING | VICUNA | LORA | {"output_dir": "checkpoints/llava-v1.5-13b-lora"},
    ),
    "v1_5/finetune_task.sh": (3, FINE_TUNING | TASK | {"output_dir": "checkpoints/llava-v1.5-13b-task"}),
    "v1_5/finetune_task_lora.sh": (
        3,
        FINE_TUNING | TASK | LORA | {"output_dir": "checkpoints/llava-v1.5-13b-task-lora"},
    ),
    "finetune_qlora.sh": (
        2,
        FINE_TUNING | VICUNA | SMALL_LORA | {"bits": 4, "output_dir": "checkpoints/llava-v1.5-13b-qlora"},
    ),
    "pretrain.sh": (
        2,
        PRETRAINING
        | {
            "model_name_or_path": "lmsys/vicuna-7b-v1.5",
            "output_dir": "checkpoints/llava-v1.5-7b-pretrain",
            "per_device_train_batch_size": 8,
            "gradient_accumulation_steps": 4,
        },
    ),
    "finetune.sh": (
        3,
        FINE_TUNING
        | VICUNA_7B
        | {
            "output_dir": "checkpoints/llava-v1.5-7b",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
        },
    ),
    "finetune_lora.sh": (
        2,
        FINE_TUNING | VICUNA | SMALL_LORA | {"output_dir": "checkpoints/llava-v1.5-13b-lora-r64"},
    ),
    "finetune_full_schedule.sh": (
        2,
        FINE_TUNING
        | VICUNA
        | {
            "data_path": "playground/data/llava_instruct_158k.json",
            "image_folder": "playground/data/coco/train2017",
            "output_dir": "checkpoints/llava-v1.5-13b-full-schedule",
            "num_train_epochs": 3,
        },
    ),
    "finetune_sqa.sh": (
        2,
        FINE_TUNING
        | {
            "model_name_or_path": "lmsys/vicuna-13b-v1.3",
            "pretrain_mm_mlp_adapter": "checkpoints/llava-v1.3-13b-pretrain/mm_projector.bin",
            "data_path": "playground/data/eval/scienceqa/llava_train_QCM-LEA.json",
            "image_folder": "playground/data/eval/scienceqa/images/train",
            "output_dir": "checkpoints/llava-v1.3-13b-sqa",
            "num_train_epochs": 12,
        },
    ),
    TRIM: (
        3,
        FINE_TUNING
        | VICUNA_7B
        | {
            "output_dir": "checkpoints/finetuned/llava-vicuna-7b-v1.5-TRIM_T-1",
            "mm_vision_token_reduce_func": "TRIM:-1",
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 4,
            "save_steps": 5000,
        },
    ),
}


def run(
    recipe: str, *arguments: str, scripts: Path = ROOT / "scripts", cwd: Path = ROOT, **variables: Any
) -> subprocess.CompletedProcess[str]:
    """Run a recipe where no GPU can be seen; a variable that is ``None`` is not set."""
    environment = {"PATH": os.environ["PATH"], "CUDA_VISIBLE_DEVICES": "", **variables}
    return subprocess.run(
        ["bash", str(scripts / recipe), *arguments],
        cwd=cwd,
        env={name: value for name, value in environment.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
    )


def dry_run(recipe: str, *arguments: str, **options: Any) -> list[str]:
    """The words of the command that a recipe prints, which must be its only line."""
    result = run(recipe, "--dry-run", *arguments, **options)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\n") and result.stdout.count("\n") == 1
    return shlex.split(result.stdout)


def flag(words: list[str], name: str) -> str | None:
    """The value of a flag that is given once, or ``None``."""
    assert words.count(name) <= 1
    return words[words.index(name) + 1] if name in words else None


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_as_llava_does(recipe: str):
    stage, expected = RECIPES[recipe]
    words = dry_run(recipe, GPUS="8")
    assert words[:4] == ["deepspeed", "--num_gpus", "8", "llava/train/train_mem.py"]
    assert flag(words, "--deepspeed") == f"scripts/zero{stage}.json"
    assert flag(words, "--tf32") == flag(words, "--gradient_checkpointing") == "True"
    # DeepSpeed would start its process group here and now.
    argv = dry_run(recipe, GPUS="8", LAUNCHER="torchrun", ZERO="")
    arguments = parse_arguments(argv[argv.index("llava/train/train_mem.py") + 1 :])
    found = {name: value for part in arguments for name, value in vars(part).items()}
    assert {name: found[name] for name in expected} == expected


def test_every_recipe_is_known_here():
    folder = ROOT / "scripts"
    recipes = [path for path in folder.rglob("*.sh") if "\nlaunch " in path.read_text()]
    assert {path.relative_to(folder).as_posix() for path in recipes} == set(RECIPES)


def test_variables_and_later_flags_replace_defaults():
    variables = {
        "MODEL": "--model_name_or_path",
        "VISION_TOWER": "--vision_tower",
        "PROJECTOR": "--pretrain_mm_mlp_adapter",
        "DATA": "--data_path",
        "IMAGES": "--image_folder",
        "OUTPUT": "--output_dir",
        "BATCH": "--per_device_train_batch_size",
        "ACCUMULATION": "--gradient_accumulation_steps",
        "LR": "--learning_rate",
        "EPOCHS": "--num_train_epochs",
        "MAX_LENGTH": "--model_max_length",
        "SAVE_STEPS": "--save_steps",
        "WORKERS": "--dataloader_num_workers",
        "REPORT_TO": "--report_to",
        "ZERO": "--deepspeed",
    }
    values = {name: str(number) for number, name in enumerate(variables, start=40)}
    words = dry_run("v1_5/finetune.sh", "--max_steps", "5", GPUS="2", **values)
    assert {name: flag(words, option) for name, option in variables.items()} == values
    assert words[-2:] == ["--max_steps", "5"]
    given = dry_run("v1_5/finetune.sh", "--seed", "1", "--bf16", "False")
    assert [value for name, value in pairwise(given) if name == "--bf16"] == ["True", "False"]


@pytest.mark.parametrize(
    ("variable", "option"),
    [("VISION_TOWER", "--vision_tower"), ("PROJECTOR", "--pretrain_mm_mlp_adapter"), ("ZERO", "--deepspeed")],
)
def test_an_empty_variable_leaves_its_flag_out(variable: str, option: str):
    assert option in dry_run("v1_5/finetune.sh", LAUNCHER="torchrun")
    assert option not in dry_run("v1_5/finetune.sh", LAUNCHER="torchrun", **{variable: ""})


@pytest.mark.parametrize(
    ("variables", "reduction", "name"),
    [
        ({"reduce_func_param": "0.25"}, "TRIM:0.25", "TRIM_T0.25"),
        ({"reduce_func": "Random", "reduce_func_param": "64"}, "Random:64", "Random_T64"),
        ({"reduce_func": "none"}, "none", "none"),
    ],
)
def test_the_reduction_is_chosen_by_variables(variables: dict[str, Any], reduction: str, name: str):
    words = dry_run(TRIM, **variables)
    assert flag(words, "--mm_vision_token_reduce_func") == reduction
    assert flag(words, "--output_dir") == f"checkpoints/finetuned/llava-vicuna-7b-v1.5-{name}"


def test_the_reduction_is_chosen_by_editing_two_lines(clone: Path):
    recipe = clone / "scripts" / TRIM
    text = recipe.read_text()
    assert "\nreduce_func=TRIM\nreduce_func_param=-1\n" in text
    recipe.write_text(text.replace("\nreduce_func_param=-1\n", "\nreduce_func_param=0.5\n"))
    words = dry_run(TRIM, scripts=clone / "scripts", cwd=clone)
    assert flag(words, "--mm_vision_token_reduce_func") == "TRIM:0.5"


def test_the_line_can_be_pasted():
    line = run(
        TRIM, "--dry-run", GPUS="8", DATA="my data/it's $HOME.json", REPORT_TO="wandb,tensorboard"
    ).stdout
    assert line.endswith(" --mm_vision_token_reduce_func TRIM:-1\n")
    assert not set("'\"\\") & set(line.replace(r"my\ data/it\'s\ \$HOME.json", ""))
    words = subprocess.run(
        ["bash", "-c", f"printf '%s\\n' {line}"], capture_output=True, text=True, check=True
    )
    assert "my data/it's $HOME.json" in words.stdout.splitlines()


def test_paths_mean_what_they_mean_to_the_user(tmp_path: Path):
    words = dry_run("v1_5/finetune.sh", cwd=tmp_path, DATA="own.json")
    assert flag(words, "--data_path") == "own.json"
    assert flag(words, "--image_folder") == f"{ROOT}/playground/data"
    assert flag(words, "--output_dir") == f"{ROOT}/checkpoints/llava-v1.5-13b"
    assert words[3] == f"{ROOT}/llava/train/train_mem.py"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("variables", "accumulation", "samples"),
    [
        ({}, "32", "= 128 samples per update\n"),
        ({"GPUS": "4"}, "8", "= 128 samples per update\n"),
        ({"GPUS": "8", "BATCH": "16"}, "1", "= 128 samples per update\n"),
        ({"GPUS": "3"}, "10", "= 120 samples per update, not GLOBAL_BATCH 128\n"),
        ({"GPUS": "64"}, "1", "= 256 samples per update, not GLOBAL_BATCH 128\n"),
        ({"GPUS": "4", "ACCUMULATION": "2"}, "2", "= 32 samples per update, not GLOBAL_BATCH 128\n"),
        ({"GPUS": "4", "GLOBAL_BATCH": "64"}, "4", "= 64 samples per update\n"),
    ],
)
def test_the_global_batch_is_kept(variables: dict[str, Any], accumulation: str, samples: str):
    assert flag(dry_run(TRIM, **variables), "--gradient_accumulation_steps") == accumulation
    assert samples in run(TRIM, "--dry-run", **variables).stderr


@pytest.mark.parametrize(
    ("variables", "starter"),
    [
        ({}, "deepspeed --num_gpus 1"),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, "deepspeed --num_gpus 1"),
        ({"CUDA_VISIBLE_DEVICES": "2,3"}, "deepspeed --include localhost:2,3"),
        ({"CUDA_VISIBLE_DEVICES": "2,3,4", "GPUS": "2"}, "deepspeed --include localhost:2,3"),
        ({"CUDA_VISIBLE_DEVICES": "2,3", "DS_ACCELERATOR": "cpu"}, "deepspeed --num_gpus 1"),
        ({"CUDA_VISIBLE_DEVICES": None}, "deepspeed --num_gpus 3"),
        ({"MASTER_PORT": "30000"}, "deepspeed --num_gpus 1 --master_port 30000"),
        ({"HOSTFILE": "hosts"}, "deepspeed --hostfile hosts"),
        ({"LAUNCHER": "torchrun", "GPUS": "8"}, "torchrun --nproc_per_node 8 --standalone"),
        (
            {"LAUNCHER": "torchrun", "GPUS": "8", "NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "first"},
            "torchrun --nproc_per_node 8 --nnodes 2 --node_rank 1 --master_addr first --master_port 29500",
        ),
        (
            {"LAUNCHER": "torchrun", "GPUS": "1", "NNODES": "9", "NODE_RANK": "08", "MASTER_ADDR": "first"},
            "torchrun --nproc_per_node 1 --nnodes 9 --node_rank 8 --master_addr first --master_port 29500",
        ),
    ],
)
def test_processes_follow_the_machines(variables: dict[str, Any], starter: str, tmp_path: Path):
    (tmp_path / "hosts").write_text("worker-1 slots=8\n# worker-2 slots=8\nworker-3 slots=8\n")
    program(tmp_path / "nvidia-smi", "printf 'GPU 0: H\\n  MIG 1g: x\\nGPU 1: H\\nGPU 2: H\\n'")
    path = f"{tmp_path}:{os.environ['PATH']}"
    words = dry_run("v1_5/finetune.sh", cwd=tmp_path, PATH=path, BATCH="1", **variables)
    assert " ".join(words[: words.index(f"{ROOT}/llava/train/train_mem.py")]) == starter
    if "hosts" in starter or "--nnodes 2" in starter:
        assert flag(words, "--gradient_accumulation_steps") == "8"  # 128 samples on 16 processes


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"GPUS": "0"}, "GPUS is '0'; accepted: a whole number of at least 1"),
        ({"BATCH": "a lot"}, "BATCH is 'a lot'; accepted: a whole number of at least 1"),
        ({"NODE_RANK": "x"}, "NODE_RANK is 'x'; accepted: 0 to NNODES - 1, which is 0"),
        ({"NODE_RANK": "2", "NNODES": "2"}, "NODE_RANK is '2'; accepted: 0 to NNODES - 1, which is 1"),
        ({"NODE_RANK": "09", "NNODES": "9"}, "NODE_RANK is '09'; accepted: 0 to NNODES - 1, which is 8"),
        ({"NODE_RANK": "9" * 30}, "accepted: 0 to NNODES - 1, which is 0"),
        ({"MASTER_PORT": "abc"}, "MASTER_PORT is 'abc'; accepted: a port from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT is '0'; accepted: a port from 1 to 65535"),
        ({"MASTER_PORT": "08"}, "MASTER_PORT is '08'; accepted: a port from 1 to 65535"),
        ({"MASTER_PORT": "65536"}, "MASTER_PORT is '65536'; accepted: a port from 1 to 65535"),
        ({"ZERO": ""}, "ZERO is empty, so DeepSpeed has nothing to do: set LAUNCHER=torchrun too"),
        ({"LAUNCHER": "mpi"}, "LAUNCHER is 'mpi'; accepted: deepspeed, torchrun"),
        ({"HOSTFILE": "nowhere"}, "no host file 'nowhere' (HOSTFILE)"),
        ({"HOSTFILE": "LICENSE"}, "has no line such as: worker-1 slots=8"),
        ({"LAUNCHER": "torchrun", "HOSTFILE": "hosts"}, "which torchrun does not read"),
        ({"NNODES": "2"}, "NNODES is 2, which deepspeed does not read"),
        ({"NNODES": "2", "LAUNCHER": "torchrun"}, "give MASTER_ADDR"),
    ],
)
def test_a_mistake_is_one_sentence(variables: dict[str, Any], sentence: str):
    result = run("v1_5/finetune.sh", "--dry-run", **variables)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
    assert sentence in result.stderr


@pytest.mark.parametrize("recipe", RECIPES)
def test_help_names_every_variable_and_its_value(recipe: str):
    result = run(recipe, "--help", BATCH="77")
    assert (result.returncode, result.stderr) == (0, "")
    assert "usage: [VARIABLE=value ...] bash " in result.stdout
    shown = {match[1]: match[0] for match in re.finditer(r"^  ([A-Z_]+) .*$", result.stdout, re.MULTILINE)}
    assert shown["BATCH"].endswith(" [77]")
    assert shown["MODEL"].endswith(f" [{RECIPES[recipe][1]['model_name_or_path']}]")
    text = "".join((ROOT / "scripts" / name).read_text() for name in ("launch.sh", recipe))
    assert set(re.findall(r'"\$\{([A-Z_]+):?=', text)) == shown.keys()


def program(path: Path, body: str) -> None:
    """Write a program of the shell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository that holds the scripts alone, in a folder with a space."""
    return shutil.copytree(ROOT / "scripts", tmp_path / "a clone" / "scripts").parent


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A folder with the few programs of the system that recipes need, to be all of PATH."""
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("awk", "basename", "bash", "cut", "date", "dirname", "env", "grep", "mkdir", "sed", "tee"):
        (folder / name).symlink_to(shutil.which(name) or name)
    return folder


def test_a_dry_run_needs_no_deepspeed_and_leaves_nothing(clone: Path, tools: Path):
    words = dry_run(TRIM, scripts=clone / "scripts", cwd=clone, PATH=str(tools))
    assert words[0] == "deepspeed"
    assert [path.name for path in clone.iterdir()] == ["scripts"]


def test_without_a_launcher_the_extra_is_named(clone: Path, tools: Path):
    result = run(TRIM, scripts=clone / "scripts", PATH=str(tools))
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(
        "error: deepspeed was not found: pip install 'llava[train]'"
    )
    assert not (clone / "logs").exists()


LAUNCHER = """
echo "$PYTHONPATH, DS_ACCELERATOR=$DS_ACCELERATOR, CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES"
printf '<%s>' "$@"; echo "a warning" >&2; exit 7
"""


def test_training_is_logged_and_its_exit_code_kept(clone: Path, tools: Path):
    program(tools / "deepspeed", LAUNCHER)
    result = run(
        TRIM, "--seed", "1 2", scripts=clone / "scripts", cwd=tools, PATH=str(tools), DATA="a b.json"
    )
    assert result.returncode == 7
    assert f"{clone}, DS_ACCELERATOR=cpu, CUDA_VISIBLE_DEVICES=\n<--num_gpus><1><" in result.stdout
    assert "<--data_path><a b.json>" in result.stdout and "<--seed><1 2>" in result.stdout
    assert "a warning" in result.stdout
    (log,) = (clone / "logs").iterdir()
    assert log.name.startswith("finetune_8gpu_TRIM-2") and log.suffix == ".log"
    assert log.read_text() == result.stdout
    assert result.stdout.startswith("==> deepspeed --num_gpus 1 ")


# As deepspeed: what it starts outlives it.
CARELESS = 'sleep 600 & echo $$ $! >"$PIDS.new"; mv "$PIDS.new" "$PIDS"; wait'


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that is dead and was not yet asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs Linux's list of processes")
@pytest.mark.parametrize(
    ("addressee", "number"),
    [
        ("script", signal.SIGTERM),
        ("script", signal.SIGINT),
        ("launcher", signal.SIGTERM),
        ("launcher", signal.SIGKILL),
    ],
)
def test_a_signal_leaves_nothing_running(
    clone: Path, tools: Path, tmp_path: Path, addressee: str, number: signal.Signals
):
    for name in ("sleep", "mv"):
        (tools / name).symlink_to(shutil.which(name) or name)
    program(tools / "deepspeed", CARELESS)
    pids = tmp_path / "pids"
    with subprocess.Popen(
        ["bash", str(clone / "scripts" / TRIM)],
        env={"PATH": str(tools), "CUDA_VISIBLE_DEVICES": "", "PIDS": str(pids)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as script:
        while not pids.exists():
            assert script.poll() is None
            time.sleep(0.05)
        launcher, worker = map(int, pids.read_text().split())
        assert is_alive(launcher) and is_alive(worker)
        os.kill({"script": script.pid, "launcher": launcher}[addressee], number)
        assert script.wait(LIMIT_S) == 128 + number
    assert not is_alive(launcher) and not is_alive(worker)


def test_logs_go_where_they_are_wanted(clone: Path, tools: Path, tmp_path: Path):
    program(tools / "torchrun", "echo started")
    options: dict[str, Any] = {"scripts": clone / "scripts", "PATH": str(tools), "LAUNCHER": "torchrun"}
    assert run("v1_5/pretrain.sh", LOGS=str(tmp_path / "new" / "logs"), **options).returncode == 0
    (log,) = (tmp_path / "new" / "logs").iterdir()
    assert "started" in log.read_text()
    result = run("v1_5/pretrain.sh", LOGS="/dev/null/logs", **options)
    assert result.returncode == 2
    assert "the log '/dev/null/logs/pretrain-" in result.stderr.splitlines()[-1]


def test_the_repositorys_environment_comes_first_unless_another_is_active(clone: Path, tools: Path):
    program(tools / "deepspeed", "echo of the system")
    program(clone / ".venv" / "bin" / "deepspeed", "echo of the repository")
    options: dict[str, Any] = {"scripts": clone / "scripts", "PATH": str(tools)}
    assert "of the repository" in run(TRIM, **options).stdout
    assert "of the system" in run(TRIM, VIRTUAL_ENV="/elsewhere", **options).stdout
    (tools / "deepspeed").unlink()
    assert "of the repository" in run(TRIM, CONDA_PREFIX="/conda", **options).stdout


def test_more_processes_than_gpus_are_refused(clone: Path, tools: Path):
    program(tools / "deepspeed", "echo started")
    options: dict[str, Any] = {
        "scripts": clone / "scripts",
        "PATH": str(tools),
        "CUDA_VISIBLE_DEVICES": "0,1",
        "GPUS": "4",
    }
    assert dry_run(TRIM, **options)[:3] == ["deepspeed", "--num_gpus", "4"]
    result = run(TRIM, **options)
    assert (result.returncode, result.stderr.splitlines()[-1]) == (2, "error: GPUS is 4, and 2 can be seen")


@pytest.mark.parametrize(("name", "stage"), [("zero2", 2), ("zero3", 3), ("zero3_offload", 3)])
def test_deepspeeds_configurations(name: str, stage: int):
    config = json.loads((ROOT / "scripts" / f"{name}.json").read_text())
    zero = config["zero_optimization"]
    assert (zero["stage"], zero["overlap_comm"], zero["contiguous_gradients"]) == (stage, True, True)
    assert (zero["sub_group_size"], zero["reduce_bucket_size"]) == (1e9, "auto")
    assert zero.get("stage3_gather_16bit_weights_on_model_save", False) is (stage == 3)
    assert ("offload_optimizer" in zero) is ("offload_param" in zero) is (name == "zero3_offload")
    assert config["bf16"] == {"enabled": "auto"}
    # They would win over --lr_scheduler_type and --mm_projector_lr.
    assert not {"optimizer", "scheduler"} & config.keys()
