"""Lets transformers' factories know LLaVA after ``import llava`` alone, which imports neither torch nor them.

``AutoConfig`` and ``AutoModelForCausalLM`` find a model's classes by the ``model_type`` of its config. Ours
are imported when that type is asked for the first time, and not when the factories are: they import much of
transformers themselves, some of it half-way through its own import.
"""

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

MODEL_TYPE = "llava_llama"
MODEL_MODULE = "llava.model.language_model.llava_llama"  # registers its classes when it is imported
FACTORIES = "transformers.models.auto.configuration_auto"


class _TypesOnDemand(dict):
    """Config classes by model type; LLaVA's is imported by the first who reads it."""

    def __getitem__(self, model_type: str) -> Any:
        if super().__getitem__(model_type) is None:
            import_module(MODEL_MODULE)
        return super().__getitem__(model_type)

    def values(self) -> Any:
        return [self[model_type] for model_type in self]

    def items(self) -> Any:
        return [(model_type, self[model_type]) for model_type in self]


def _add_type(factories: ModuleType) -> None:
    """Add LLaVA's type to those that others have registered; there is no public way to do so unread."""
    mapping: Any = factories.CONFIG_MAPPING
    if MODEL_TYPE not in mapping._extra_content:
        mapping._extra_content = _TypesOnDemand({**mapping._extra_content, MODEL_TYPE: None})


class _Finder(MetaPathFinder):
    """Finds transformers' factories as Python does, and adds LLaVA's type once they are imported."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Return where a module comes from, None for all others."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname == FACTORIES else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_add(module: ModuleType) -> None:
            execute(module)
            _add_type(module)

        spec.loader.exec_module = execute_and_add  # type: ignore[method-assign]
        return spec


def register_with_factories() -> None:
    """Add LLaVA's type to transformers' factories, now or when they are imported."""
    if FACTORIES in sys.modules:
        _add_type(sys.modules[FACTORIES])
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
