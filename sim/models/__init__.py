"""Model presets: the values of published `config.json` files, one module each, in an explicit list."""

from collections.abc import Mapping

from moecast.sim.models.deepseek import DEEPSEEK_V2_LITE, DEEPSEEK_V3
from moecast.sim.models.gpt_oss import GPT_OSS_120B
from moecast.sim.models.kimi import KIMI_K2
from moecast.sim.models.minimax import MINIMAX_M2_5
from moecast.sim.models.mixtral import MIXTRAL_8X7B, MIXTRAL_8X22B
from moecast.sim.models.olmoe import OLMOE_1B_7B
from moecast.sim.models.preset import ModelPreset
from moecast.sim.models.qwen3 import QWEN3_30B_A3B, QWEN3_235B_A22B
from moecast.sim.models.qwen3_5 import QWEN3_5_397B_A17B

PRESETS: Mapping[str, ModelPreset] = {
    "deepseek-v2-lite": DEEPSEEK_V2_LITE,
    "deepseek-v3": DEEPSEEK_V3,
    "mixtral-8x7b": MIXTRAL_8X7B,
    "mixtral-8x22b": MIXTRAL_8X22B,
    "qwen3-30b-a3b": QWEN3_30B_A3B,
    "qwen3-235b-a22b": QWEN3_235B_A22B,
    "olmoe-1b-7b": OLMOE_1B_7B,
    "gpt-oss-120b": GPT_OSS_120B,
    "minimax-m2.5": MINIMAX_M2_5,
    "kimi-k2": KIMI_K2,
    "qwen3.5-397b-a17b": QWEN3_5_397B_A17B,
}

__all__ = ["PRESETS", "ModelPreset"]
