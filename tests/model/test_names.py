"""Names that code written for LLaVA imports."""

import importlib

import pytest


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("llava", "LlavaLlamaForCausalLM"),
        ("llava.model", "LlavaLlamaForCausalLM"),
        ("llava.model", "LlavaConfig"),
        ("llava.model.builder", "load_pretrained_model"),
        ("llava.model.multimodal_encoder.builder", "build_vision_tower"),
        ("llava.model.multimodal_projector.builder", "build_vision_projector"),
        ("llava.model.llava_arch", "LlavaMetaForCausalLM"),
        ("llava.utils", "disable_torch_init"),
        ("llava.mm_utils", "KeywordsStoppingCriteria"),
        ("llava.eval.run_llava", "eval_model"),
        ("llava.conversation", "conv_templates"),
        ("llava.constants", "IMAGE_TOKEN_INDEX"),
    ],
)
def test_a_name_of_llava_is_there(module, name):
    assert (
        callable(getattr(importlib.import_module(module), name)) or name.isupper() or name == "conv_templates"
    )


def test_other_names_are_not():
    name = "nonsense"
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        getattr(importlib.import_module("llava.model"), name)
