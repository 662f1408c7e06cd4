"""A Q-Former with PETAL written out operation by operation, from the frozen model and an adapter's saved tensors."""

import torch
import torch.nn.functional as F

PREFIX = "base_model.model."
SHARED = "base_model.petal_shared."


def qformer(host, saved, queries, image, ids=None, mask=None, *, context="off", alpha=0.6, beta=0.4, text_only=False):
    """``last_hidden_state`` of the Q-Former of ``host`` without its dropouts; everything is recomputed where needed."""
    frozen, heads = host.qformer, host.config.qformer_config.num_attention_heads
    normed = (
        (queries, frozen.layernorm) if ids is None else (_embedded(frozen, queries, ids), frozen.embeddings.layernorm)
    )
    e = normed[1](normed[0])
    e = _experts(e, saved, alpha, beta, queries.shape[1] if text_only else 0)
    bias = 0.0 if mask is None else torch.where(mask.bool(), 0.0, -torch.inf)[:, None, None]
    number = queries.shape[1]
    for i, layer in enumerate(frozen.encoder.layer):
        path = f"qformer.encoder.layer.{i}"

        def attend(block, name, x, y, bias, path=path):
            kind = "image" if name == "crossattention" else "text"
            key = f"{path}.{name}.attention"
            q = block.attention.query(x) + _update(x, saved, "text", f"{key}.query")
            k = block.attention.key(y) + _update(y, saved, kind, f"{key}.key")
            v = block.attention.value(y) + _update(y, saved, kind, f"{key}.value")
            q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (q, k, v))
            weights = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5 + bias, dim=-1)
            mixed = block.output.dense((weights @ v).transpose(1, 2).flatten(2))
            return block.output.LayerNorm(mixed + x)

        a = attend(layer.attention, "attention", e, e, bias)
        q = a[:, :number]
        if hasattr(layer, "crossattention"):
            o = attend(layer.crossattention, "crossattention", q, image, 0.0).clone()
            if context == "batch_mean":
                o[:, 0] += 0.1 * q[:, 0].mean(0)
            elif context == "per_sample":
                o[:, 0] += 0.1 * q.mean(1)
            q = o
        e = _feed_forward(layer.intermediate_query, layer.output_query, q)
        if f"{SHARED}cross_query_transform.qformer.{i}.scale" in saved:
            e = e + _transformed(q, saved, "cross_query_transform", i)
        if a.shape[1] > number:
            e = torch.cat([e, _feed_forward(layer.intermediate, layer.output, a[:, number:])], dim=1)
        if f"{SHARED}query_transform.qformer.{i}.scale" in saved:
            e = e + _transformed(a, saved, "query_transform", i)
    return e


def _embedded(frozen, queries, ids):
    words = frozen.embeddings.word_embeddings(ids) + frozen.embeddings.position_embeddings.weight[: ids.shape[1]]
    return torch.cat([queries, words], dim=1)


def _experts(e, saved, alpha, beta, first):
    if f"{SHARED}experts.down_weight" not in saved:
        return e
    down, a, up, b = (saved[f"{SHARED}experts.{name}"] for name in ("down_weight", "down_bias", "up_weight", "up_bias"))
    number = b.shape[0]
    total = 0
    for k, (down_k, a_k, up_k) in enumerate(
        zip(down.chunk(number), a.chunk(number), up.chunk(number, dim=1), strict=True)
    ):
        total = total + F.linear(F.linear(e, down_k, a_k), up_k, b[k]) / number
    mixed = alpha * e + beta * total
    return torch.cat([e[:, :first], mixed[:, first:]], dim=1)


def _update(x, saved, kind, path):
    """V Mᵀ U x with M = Σ_k p_k C[:, :, k], or λ ⊙ p on the diagonal."""
    factors = f"{SHARED}factors.{kind}"
    u, p = saved[f"{factors}.u"], saved[f"{PREFIX}{path}.petal_mode"]
    (v,) = [tensor for name, tensor in saved.items() if name.startswith(f"{factors}.v.")]
    core = saved.get(f"{factors}.cores.core", saved.get(f"{SHARED}factors.text.cores.core"))
    m = torch.diag(core * p) if core.dim() == 1 else sum(core[:, :, k] * p[k] for k in range(len(p)))
    return x @ u.T @ m @ v.T


def _feed_forward(intermediate, output, x):
    return output.LayerNorm(output.dense(intermediate.intermediate_act_fn(intermediate.dense(x))) + x)


def _transformed(x, saved, kind, i):
    return 0.1 * (x * saved[f"{SHARED}{kind}.qformer.{i}.scale"] + saved[f"{SHARED}{kind}.qformer.{i}.shift"])
