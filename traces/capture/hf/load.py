"""Loading a model and its tokenizer by name or folder, with one line for whatever goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils.import_utils import is_peft_available

from moecast.errors import MoecastError
from moecast.files import read_text

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """Which model to load and how: a folder or a hub id, its revision, element type and device.

    A folder that holds an adapter of PEFT stands for the model it was trained on, with the adapter.
    With `random_weights` only its config is read, and the weights are drawn with `seed`. `device`
    is torch's name of one, or `auto` to spread the model over all there are (needs accelerate).
    """

    name: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    trust_remote_code: bool = False
    random_weights: bool = False
    seed: int = 0

    def check(self) -> None:
        """Fail on what can be told before anything is loaded.

        Raises
        ------
        MoecastError
            No such folder, element type or device.
        """
        if self.dtype not in DTYPES:
            raise MoecastError(f"one of {', '.join(DTYPES)}", field="--dtype", value=self.dtype)
        for field, name in (("MODEL", self.name), ("--tokenizer", self.tokenizer)):
            if name is not None and _is_path(name) and not Path(name).expanduser().is_dir():
                raise MoecastError("no such folder", field=field, value=name)
        if self.device != "auto":
            try:
                torch.empty(1, device=self.device)
            except (RuntimeError, AssertionError) as error:
                rule = "torch has no such device here"
                raise MoecastError(rule, field="--device", value=self.device) from error

    def load_tokenizer(self) -> Any:
        """The tokenizer that stands with the model, or the one asked for.

        Raises
        ------
        MoecastError
            There is none.
        """
        name = self.tokenizer or self.name
        with _one_line("the tokenizer cannot be loaded; name another with --tokenizer", name):
            if not (Path(_expanded(name)) / "tokenizer_config.json").exists():
                name = self.tokenizer or self._base() or name
            return AutoTokenizer.from_pretrained(
                _expanded(name),
                trust_remote_code=self.trust_remote_code,
                revision=None if self.tokenizer else self.revision,
            )

    def load_model(self) -> transformers.PreTrainedModel:
        """The model, on its device, for inference.

        Raises
        ------
        MoecastError
            It cannot be loaded, or is no generating model of text.
        """
        with _one_line("the model cannot be loaded", self.name):
            base = self._base()
            config = AutoConfig.from_pretrained(
                base or _expanded(self.name),
                trust_remote_code=self.trust_remote_code,
                revision=None if base else self.revision,
            )
            kind: Any = AutoModelForCausalLM
            if type(config) not in AutoModelForCausalLM._model_mapping and type(config) in (
                AutoModelForImageTextToText._model_mapping
            ):
                kind = AutoModelForImageTextToText
            model = self._random(kind, config) if self.random_weights else self._stored(kind, config)
        return model.eval()

    def _random(self, kind: Any, config: Any) -> Any:
        torch.manual_seed(self.seed)
        if self._base() is not None:
            raise MoecastError("an adapter has no random weights", field="--random-weights")
        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        model = kind.from_config(config, dtype=dtype, trust_remote_code=self.trust_remote_code)
        best = "cuda" if torch.cuda.is_available() else "cpu"
        return model.to(best if self.device == "auto" else self.device)

    def _stored(self, kind: Any, config: Any) -> Any:
        folder = Path(self.name).expanduser()
        weights = (".safetensors", ".bin", ".index.json")
        if folder.is_dir() and not any(file.name.endswith(weights) for file in folder.iterdir()):
            raise MoecastError(
                "holds no weights; to run random ones say --random-weights", field="MODEL", value=self.name
            )
        where: dict[str, Any] = {"device_map": "auto"} if self.device == "auto" else {}
        if (getattr(config, "quantization_config", None) or {}).get("quant_method") == "mxfp4":
            # Its kernels choose experts inside themselves, where nothing can be heard.
            config.quantization_config = {**config.quantization_config, "dequantize": True}
        model = kind.from_pretrained(
            _expanded(self.name),
            config=config,
            dtype=self.dtype,
            revision=self.revision,
            trust_remote_code=self.trust_remote_code,
            **where,
        )
        return model if where else model.to(self.device)

    def _base(self) -> str | None:
        """The model that an adapter in this folder was trained on; None where the folder holds a model itself."""
        file = Path(_expanded(self.name)) / "adapter_config.json"
        if not file.is_file() or (file.parent / "config.json").exists():
            return None
        base = json.loads(read_text(file)).get("base_model_name_or_path")
        if not isinstance(base, str) or not base:
            rule = "does not say which model it adapts"
            raise MoecastError(rule, file=file, field="base_model_name_or_path")
        if not is_peft_available():
            raise MoecastError("is an adapter; pip install peft", field="MODEL", value=self.name)
        return base


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' own messages and bars off the terminal, and what libraries say of each other's older names."""
    logging: Any = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


@contextlib.contextmanager
def _one_line(what: str, name: str) -> Iterator[None]:
    """Turn whatever a library raises over somebody's files into the line a user reads."""
    try:
        yield
    except MoecastError:
        raise
    except Exception as error:  # config and weight files are of unknown origin: any error may come out of them
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = lines[0] if lines else type(error).__name__
        raise MoecastError(f"{what} ({reason})", field="MODEL", value=name) from error


def _is_path(name: str) -> bool:
    """A hub id is `name` or `owner/name`; anything else is a folder."""
    return name.startswith((".", "~", os.sep)) or name.count("/") > 1 or Path(name).exists()


def _expanded(name: str) -> str:
    return str(Path(name).expanduser()) if name.startswith("~") else name
