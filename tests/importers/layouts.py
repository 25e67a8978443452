"""Files laid out as engines write them, from routing made up here.

No engine runs a model on this project's machines; `record_sglang.py` drives the one part that could be run by itself.
Here ``.pt`` files are written by the real `torch.save`, safetensors by the real library, arrays by NumPy; which values
they hold, and under which names, follows the engines' sources, which the importers' docstrings name.
"""

import base64
import io
import json
import warnings

import numpy as np
from safetensors.numpy import save_file

from moecast.traces import NO_CHOICE


def draw_choices(rng, tokens, rows, experts, choices):
    """int64 [tokens, rows, choices], no expert twice."""
    return np.argsort(rng.random((tokens, rows, experts)), axis=2)[:, :, :choices].astype(np.int64)


def with_dense(choices_TRK, dense, fill):
    """The same with dense rows put in at these places, all `fill`."""
    wide = choices_TRK
    for row in dense:
        wide = np.insert(wide, row, fill, axis=1)
    return wide


def base64_npy(array):
    """As vLLM's server encodes an array (v0.22)."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def torch_save(value, path):
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.save(_tensors(value), path)
    return path


def _tensors(value):
    import torch

    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    return [_tensors(item) for item in value] if isinstance(value, list) else value


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def vllm_split(prompt, generated):
    """A response of vLLM v0.21: nested lists, the prompt's routing apart."""
    return {
        "id": "cmpl-1",
        "choices": [{"index": 0, "text": "x", "routed_experts": generated.tolist()}],
        "prompt_routed_experts": prompt.tolist(),
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(generated) + 1},
    }


def vllm_whole(prompt, generated, *, start=0):
    """A response of vLLM v0.22: base64 of all rows but the last token's."""
    rows = np.concatenate([prompt, generated])[start:].astype(np.uint8)
    return {
        "id": "cmpl-1",
        "choices": [{"index": 0, "text": "x", "routed_experts": base64_npy(rows)}],
        "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(generated) + 1},
    }


def sglang_response(prompt, generated):
    """A response of SGLang's /generate."""
    rows = np.concatenate([prompt, generated]).astype("<i4")
    return {
        "text": "x",
        "meta_info": {
            "prompt_tokens": len(prompt),
            "completion_tokens": len(generated) + 1,
            "cached_tokens": 0,
            "routed_experts": base64.b64encode(rows.tobytes()).decode(),
        },
    }


def sglang_pass(step, rank, choices_TRK, *, mode=1, lengths=None, first=0, room=8):
    """A record of SGLang's recorder in mode per_token: physical ids [rows, tokens, 8], -1 where there is none."""
    tokens, rows, choices = choices_TRK.shape
    wide = np.full((rows, tokens, room), -1, np.int32)
    wide[:, :, :choices] = choices_TRK.transpose(1, 0, 2)
    return {
        "forward_pass_id": step,
        "rank": rank,
        "gatherer_key": "primary",
        "input_ids": [100 + token for token in range(tokens)],
        "positions": [first + token for token in range(tokens)],
        "extend_seq_lens": [tokens] if lengths is None and mode == 1 else lengths,
        "forward_mode": mode,
        "topk_ids_of_layer": wide,
        "misc_objects": [],
        "global_physical_count": np.zeros((rows, 4), np.int32),
    }


def sglang_dump(path, records, map_RP):
    return torch_save({"records": records, "last_physical_to_logical_map": np.asarray(map_RP, np.int64)}, path)


def megatron_lines(step, rank, choices_TLK, layers, **more):
    """The lines of one micro-batch of Megatron-Core's trace."""
    return [
        {
            "step": step,
            "stage": "pre_dispatch",
            "block": "decoder",
            "layer": layer,
            "rank": rank,
            "num_tokens": len(choices_TLK),
            "topk": choices_TLK.shape[2],
            "top_indices": choices_TLK[:, index].tolist(),
            **more,
        }
        for index, layer in enumerate(layers)
    ]


def trtllm_folder(folder, counts, *, experts, choices, tokens=None):
    """TensorRT-LLM's statistics: {rank: {"iteration_layer": counts}}, and the choices where a branch writes them."""
    folder.mkdir(exist_ok=True)
    (folder / "meta_info.json").write_text(json.dumps({"num_experts": experts, "num_experts_per_token": choices}))
    for rank, tensors in counts.items():
        save_file(
            {key: np.asarray(value, np.int64) for key, value in tensors.items()}, folder / f"rank{rank}.safetensors"
        )
    for rank, tensors in (tokens or {}).items():
        save_file(
            {key: np.asarray(value, np.int32) for key, value in tensors.items()},
            folder / f"token_selected_experts_rank{rank}.safetensors",
        )
    return folder


def as_choices(choices_TLK):
    """As a trace holds them."""
    return np.where(choices_TLK < 0, NO_CHOICE, choices_TLK).astype(np.uint16)


def route_lines(choices_TK, *, layer, request, weights_TK=None, meta=True, first=0, **more):
    """Lines of a route log of patched vLLM: tokens of one request at one layer, after a meta line."""
    lines = (
        [
            {
                "type": "meta",
                "model_id": "maker/tiny",
                "vllm_version": "0.11.2",
                "layers_logged": [layer],
                "top_k": choices_TK.shape[1],
                **more,
            }
        ]
        if meta
        else []
    )
    for token, ids in enumerate(choices_TK.tolist()):
        line = {"type": "route", "req_id": request, "token_idx": first + token, "layer": layer, "topk_ids": ids}
        if weights_TK is not None:
            line["topk_weights"] = weights_TK[token].tolist()
        lines.append(line)
    return lines


def routes_document(prompt, generated, layer_ids, *, experts, weights_TLK=None):
    """A prompt's routing with a dict of layers per token."""
    rows = np.concatenate([prompt, generated])
    weights_TLK = np.ones(rows.shape) if weights_TLK is None else weights_TLK
    routes = [
        {
            "token_pos": token,
            "token_id": 100 + token,
            "token_str": "x",
            "phase": "prefill" if token < len(prompt) else "decode",
            "layers": {
                str(layer): {"experts": rows[token, at].tolist(), "weights": weights_TLK[token, at].tolist()}
                for at, layer in enumerate(layer_ids)
            },
        }
        for token in range(len(rows))
    ]
    meta = {"model_id": "tiny", "num_experts": experts, "top_k": rows.shape[2], "backend": "vllm"}
    return {"meta": meta, "prompt_tokens": [1] * len(prompt), "routes": routes}


def event_table(choices_TLK, sequence_T, position_T, topic_T, *, prompt=3, weights_TLK=None):
    """Columns of the OLMoE decode trace: an event for each token and layer."""
    tokens, layers, choices = choices_TLK.shape
    weights_TLK = np.full(choices_TLK.shape, 1 / choices) if weights_TLK is None else weights_TLK
    each = {"sequence_id": sequence_T, "domain_id": topic_T, "token_id": 50 + np.arange(tokens)}
    return {
        "schema_version": np.array("olmoe_decode_atomic_routing_v1"),
        "event_index": np.arange(tokens * layers),
        **{name: np.repeat(column, layers).astype(np.int32) for name, column in each.items()},
        "prompt_length": np.full(tokens * layers, prompt, np.int32),
        "generated_token_index": np.repeat(position_T, layers).astype(np.int32) - prompt,
        "layer_index": np.tile(np.arange(layers), tokens).astype(np.int16),
        "requested_expert_ids": choices_TLK.reshape(-1, choices).astype(np.int16),
        "router_weights": weights_TLK.reshape(-1, choices).astype(np.float32),
    }
