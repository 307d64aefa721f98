"""Transformers' factories know LLaVA after `import llava`, whoever is imported first."""

import subprocess
import sys

import pytest

FACTORIES = "from transformers import AutoConfig, AutoModelForCausalLM"
IMPORTS = {
    "llava first": f"import llava\n{FACTORIES}",
    "factories first": f"{FACTORIES}\nimport llava",
    "another model first": f"import llava\nfrom transformers import LlamaConfig\n{FACTORIES}",
}
CODE = """
import sys
assert "llava.model" not in sys.modules
folder = {folder!r}
config = AutoConfig.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
from llava.model.language_model.llava_llama import LlavaConfig, LlavaLlamaForCausalLM
assert type(config) is LlavaConfig and type(model) is LlavaLlamaForCausalLM
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


@pytest.mark.parametrize("order", IMPORTS)
def test_the_factories_load_a_llava(order: str, checkpoint_copy):
    folder = checkpoint_copy(model_type="llava_llama")
    finished = run(IMPORTS[order] + CODE.format(folder=str(folder)))
    assert finished.returncode == 0, finished.stderr


def test_importing_llava_imports_no_heavy_library():
    finished = run(
        "import sys, llava; print({'torch', 'transformers', 'numpy', 'PIL'} & sys.modules.keys() or 'none')"
    )
    assert finished.stdout == "none\n"


def test_other_types_are_found_as_before():
    code = f"import llava\n{FACTORIES}\nprint(type(AutoConfig.for_model('gpt2')).__name__)"
    assert run(code).stdout == "GPT2Config\n"


def test_llava_is_among_all_types():
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    from llava.model.language_model.llava_config import LlavaConfig

    assert dict(CONFIG_MAPPING.items())["llava_llama"] is LlavaConfig
    assert LlavaConfig in CONFIG_MAPPING.values()
    assert "llava_llama" in CONFIG_MAPPING
