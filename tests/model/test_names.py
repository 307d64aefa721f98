"""Names that code written for LLaVA imports, from where LLaVA has them."""

import importlib

import pytest

NAMES = {
    "llava": ["LlavaLlamaForCausalLM"],
    "llava.constants": [
        *["CONTROLLER_HEART_BEAT_EXPIRATION", "DEFAULT_IMAGE_PATCH_TOKEN", "DEFAULT_IMAGE_TOKEN"],
        *["DEFAULT_IM_END_TOKEN", "DEFAULT_IM_START_TOKEN", "IGNORE_INDEX", "IMAGE_PLACEHOLDER"],
        *["IMAGE_TOKEN_INDEX", "LOGDIR", "WORKER_HEART_BEAT_INTERVAL"],
    ],
    "llava.conversation": [
        *["Conversation", "SeparatorStyle", "conv_templates", "default_conversation", "conv_chatml_direct"],
        *["conv_llama_2", "conv_llava_llama_2", "conv_llava_plain", "conv_llava_v0", "conv_llava_v0_mmtag"],
        *["conv_llava_v1", "conv_llava_v1_mmtag", "conv_mistral_instruct", "conv_mpt", "conv_vicuna_v0"],
        "conv_vicuna_v1",
    ],
    "llava.mm_utils": [
        *["KeywordsStoppingCriteria", "divide_to_patches", "expand2square", "get_anyres_image_grid_shape"],
        *["get_model_name_from_path", "load_image_from_base64", "process_anyres_image", "process_images"],
        *["resize_and_pad_image", "select_best_resolution", "tokenizer_image_token"],
    ],
    "llava.utils": [
        *["build_logger", "disable_torch_init", "moderation_msg", "pretty_print_semaphore"],
        "server_error_msg",
    ],
    "llava.model": ["LlavaConfig", "LlavaLlamaForCausalLM"],
    "llava.model.apply_delta": ["apply_delta"],
    "llava.model.builder": ["load_pretrained_model"],
    "llava.model.consolidate": ["consolidate_ckpt"],
    "llava.model.language_model.llava_llama": ["LlavaConfig", "LlavaLlamaForCausalLM", "LlavaLlamaModel"],
    "llava.model.llava_arch": ["LlavaMetaForCausalLM", "LlavaMetaModel", "unpad_image"],
    "llava.model.make_delta": ["make_delta"],
    "llava.model.multimodal_encoder.builder": ["build_vision_tower"],
    "llava.model.multimodal_encoder.clip_encoder": ["CLIPVisionTower"],
    "llava.model.multimodal_projector.builder": ["build_vision_projector"],
    "llava.model.utils": ["auto_upgrade"],
    "llava.train.llava_trainer": ["LLaVATrainer", "LengthGroupedSampler"],
    "llava.train.train": [
        *["DataArguments", "DataCollatorForSupervisedDataset", "LLaVATrainer", "LazySupervisedDataset"],
        *["ModelArguments", "TrainingArguments", "find_all_linear_names", "make_supervised_data_module"],
        *["preprocess", "preprocess_multimodal", "safe_save_model_for_hf_trainer", "train"],
    ],
    "llava.eval.m4c_evaluator": [
        *["EvalAIAnswerProcessor", "STVQAANLSEvaluator", "STVQAAccuracyEvaluator"],
        "TextVQAAccuracyEvaluator",
    ],
    "llava.eval.run_llava": ["eval_model", "image_parser", "load_image", "load_images"],
    "llava.serve.cli": ["load_image", "main"],
}
MODULES = [
    *["llava.eval.eval_gpt_review_bench", "llava.eval.eval_pope", "llava.eval.eval_science_qa"],
    *["llava.eval.eval_textvqa", "llava.eval.model_vqa", "llava.eval.model_vqa_loader"],
    *["llava.eval.model_vqa_mmbench", "llava.eval.model_vqa_science", "llava.eval.summarize_gpt_review"],
    *["llava.serve.controller", "llava.serve.gradio_web_server", "llava.serve.model_worker"],
    *["llava.serve.register_worker", "llava.serve.test_message"],
]


@pytest.mark.parametrize(("module", "name"), [(module, name) for module in NAMES for name in NAMES[module]])
def test_a_name_of_llava_is_there(module: str, name: str):
    assert getattr(importlib.import_module(module), name) is not None


@pytest.mark.parametrize("module", MODULES)
def test_a_command_of_llava_is_there(module: str):
    assert callable(importlib.import_module(module).main)


def test_other_names_are_not():
    name = "nonsense"
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        getattr(importlib.import_module("llava.model"), name)
