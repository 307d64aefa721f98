"""What is used of other libraries beyond their public interfaces is there, or a sentence says what is not."""

import inspect
import re

import accelerate.hooks
import pytest
import torch
import transformers
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments
from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

from llava import internals
from llava.tokenizer import load_tokenizer
from llava.train.llava_trainer import LLaVATrainer
from tests.conftest import TINY_LLAVA

VERSION = f"transformers {transformers.__version__}"


@pytest.mark.parametrize("name", internals.TRAINER_METHODS)
def test_a_method_of_the_trainer_takes_what_ours_counts_on(name: str):
    method = getattr(Trainer, name, None)
    assert method is not None, f"{VERSION}: Trainer.{name} is gone; LLaVATrainer replaces or calls it"
    parameters = inspect.signature(method).parameters
    lacking = [one for one in internals.TRAINER_METHODS[name] if one not in parameters]
    assert not lacking, f"{VERSION}: Trainer.{name} has no parameter {lacking[0]!r} any more"


def test_every_private_method_that_the_trainer_replaces_is_listed():
    private = {name for name in vars(LLaVATrainer) if name.startswith("_") and not name.startswith("__")}
    replaced = {name for name in private if hasattr(Trainer, name)}
    assert replaced <= internals.TRAINER_METHODS.keys()


def test_the_trainer_asks_its_own_methods():
    """A method that nothing calls any more would be replaced in vain."""
    source = inspect.getsource(Trainer)
    for name in internals.TRAINER_METHODS:
        assert re.search(rf"self\.{name}\b", source), f"{VERSION}: Trainer no longer calls self.{name}"


def test_the_cache_has_the_name_that_llama_takes():
    parameters = inspect.signature(LlamaForCausalLM.forward).parameters
    assert internals.CACHE_ARGUMENT in parameters, f"{VERSION}: the cache of LlamaForCausalLM has a new name"


def test_a_model_is_built_with_the_attention_that_is_asked_for():
    assert hasattr(PreTrainedModel, "_from_config"), f"{VERSION}: PreTrainedModel._from_config is gone"
    config = transformers.LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, vocab_size=8
    )
    for attention in ("eager", "sdpa"):
        with torch.device("meta"):
            model = internals.build_model(LlamaForCausalLM, config, attention)
        assert model.config._attn_implementation == attention


def test_a_module_whose_weights_are_elsewhere_says_where_it_computes():
    module = nn.Linear(2, 2)
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    assert hasattr(module, "_hf_hook"), f"accelerate {accelerate.__version__} has no hook under _hf_hook"
    assert internals.execution_device(module) == torch.device("cpu")
    accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook(), append=True)
    assert internals.execution_device(module) == torch.device("cpu")


def test_weights_that_are_elsewhere_can_be_read():
    module = nn.Linear(2, 2)
    weight = module.weight.detach().clone()
    accelerate.cpu_offload(module, execution_device=torch.device("cpu"))
    accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook(), append=True)
    assert torch.equal(internals.offloaded_weight(module, "weight"), weight)


def test_added_tokens_are_known_and_cut_out():
    tokenizer = load_tokenizer(TINY_LLAVA)
    assert isinstance(tokenizer, SentencePieceBackend)
    tokenizer.add_tokens(["<im_patch>"], special_tokens=True)
    assert internals.added_token_ids(tokenizer) == tokenizer.added_tokens_encoder, f"{VERSION}: other tokens"
    assert internals.added_token(tokenizer, "<im_patch>").special
    assert internals.added_token(tokenizer, "a") is None
    assert internals.split_at_added_tokens(tokenizer, "a<im_patch></s> b") == [
        "a",
        "<im_patch>",
        "</s>",
        " b",
    ]


def test_one_gpu_is_used_where_there_are_several(tmp_path):
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert hasattr(arguments, "_n_gpu"), f"{VERSION}: TrainingArguments keeps the number of GPUs elsewhere"
    arguments._n_gpu = 4
    internals.use_one_gpu(arguments)
    assert arguments.n_gpu == 1
