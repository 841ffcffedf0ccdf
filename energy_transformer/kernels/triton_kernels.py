r"""Triton kernels of the energy attention and its derivative, in tiles: no N×N matrix ever leaves the chip.

With s = β q kᵀ + bias, A the softmax over each row of s and L the row logsumexp, the terms of the energy's gradient are

$$T_1 = A k, \qquad T_2 = A^\top q$$

(Hoover et al. 2023, arXiv 2302.07253, equation 6). For upstream gradients G1 of T1 and G2 of T2,

$$dA = G_1 k^\top + q\,G_2^\top, \quad U = A\,G_2, \quad D_i = G_{1,i} \cdot T_{1,i} + q_i \cdot U_i$$
$$dS = A \circ (dA - D), \quad dq = \beta\,dS\,k + U, \quad dk = \beta\,dS^\top q + A^\top G_1, \quad
  d\beta = \textstyle\sum_{ij} dS_{ij}\,q_i \cdot (k_j - T_{1,i}), \quad d\text{bias} = dS$$

Each is a sum over the columns of A, for a tile of rows, or over its rows, for a tile of columns; A is computed again
from q, k and L. Products are accumulated in float32. D is subtracted before the product with k, at the price of a
second pass over the columns: (A ∘ dA) k − D ∘ T1 is the same in one, but cancels, and loses digits where A is peaked.
For the same reason T1 is subtracted in dβ, where it changes nothing but the rounding: the rows of dS sum to zero.

The kernels in tiles compute a weight twice and, for the derivative, three times: four products forward and eleven
backward. Those of whole heads hold a few rows of a short head at once, and need three and seven.

Layout: q, k, G1 and G2 are (B, H, N, Y), each with the three strides of B, H and N and elements of a head side by side;
outputs of that shape lie in memory as (B, N, H, Y); L, D and what else has one number for a row is a contiguous
(B, H, N) in float32, β (H,). `mask` (B, N, N) and `tokens` (B, N) are bytes, or None; `bias` is (B, H, N, N) with
strides of 0 where it is shared, or None. CAUSAL is 1 where a token attends to none behind it, else 0. Y is padded to
WIDTH.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _program(heads, length, BLOCK: tl.constexpr):
    """Image, head and first position of this program's tile."""
    blocks = tl.cdiv(length, BLOCK)
    image_and_head = tl.program_id(0) // blocks
    return (image_and_head // heads).to(tl.int64), image_and_head % heads, tl.program_id(0) % blocks * BLOCK


@triton.jit
def _real(tokens, image, stride, positions, length):
    """Which positions are tokens: neither beyond the last nor padding."""
    real = positions < length
    if tokens is not None:
        real = real & (tl.load(tokens + image * stride + positions, mask=real, other=0) != 0)
    return real


@triton.jit
def _load(matrix, image, head, stride_b, stride_h, stride_n, positions, real, width, WIDTH: tl.constexpr):
    """A tile (positions, WIDTH) of a (B, H, N, Y), zero where there is no token."""
    y = tl.arange(0, WIDTH)
    pointers = matrix + image * stride_b + head * stride_h + positions[:, None] * stride_n + y[None, :]
    return tl.load(pointers, mask=real[:, None] & (y < width)[None, :], other=0.0)


@triton.jit
def _store(matrix, image, head, heads, positions, length, width, tile, WIDTH: tl.constexpr):
    y = tl.arange(0, WIDTH)
    pointers = matrix + ((image * length + positions[:, None]) * heads + head) * width + y[None, :]
    inside = (positions < length)[:, None] & (y < width)[None, :]
    tl.store(pointers, tile.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def _allowed(
    mask, image, stride_b, stride_i, stride_j, i, j, real_i, real_j, ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr
):
    """Which pairs (i, j) of tokens attend; for a transposed tile swap i and j and their strides, and negate CAUSAL."""
    allowed = real_i[:, None] & real_j[None, :]
    if not ATTEND_TO_SELF:
        allowed = allowed & (i[:, None] != j[None, :])
    if CAUSAL != 0:
        allowed = allowed & ((i[:, None] - j[None, :]) * CAUSAL >= 0)
    if mask is not None:
        pointers = mask + image * stride_b + i.to(tl.int64)[:, None] * stride_i + j.to(tl.int64)[None, :] * stride_j
        allowed = allowed & (tl.load(pointers, mask=allowed, other=0) != 0)
    return allowed


@triton.jit
def _scores(products, scale, bias, image, head, stride_b, stride_h, stride_i, stride_j, i, j, allowed):
    """β q kᵀ + bias in units of log 2, given `scale`, β in those units; −inf for pairs that do not attend."""
    scores = products * scale
    if bias is not None:
        offsets = i.to(tl.int64)[:, None] * stride_i + j.to(tl.int64)[None, :] * stride_j
        added = tl.load(bias + image * stride_b + head * stride_h + offsets, mask=allowed, other=0.0)
        scores += added.to(tl.float32) * LOG2_E
    return tl.where(allowed, scores, float("-inf"))


@triton.jit
def forward_rows(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    beta,
    mask, mask_b, mask_i, mask_j,
    tokens, tokens_b,
    bias, bias_b, bias_h, bias_i, bias_j,
    by_keys, logsumexp,
    heads, length, width,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """T1 and L of BLOCK rows, over INNER columns at a time; 0 for rows without any allowed column."""
    image, head, start = _program(heads, length, BLOCK)
    rows = start + tl.arange(0, BLOCK)
    real_rows = _real(tokens, image, tokens_b, rows, length)
    q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
    scale = tl.load(beta + head) * LOG2_E

    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    pulled = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, length, INNER):
        columns = first + tl.arange(0, INNER)
        real_columns = _real(tokens, image, tokens_b, columns, length)
        k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
        allowed = _allowed(
            mask, image, mask_b, mask_i, mask_j, rows, columns, real_rows, real_columns, ATTEND_TO_SELF, CAUSAL
        )
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = _scores(products, scale, bias, image, head, bias_b, bias_h, bias_i, bias_j, rows, columns, allowed)
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(new_largest == float("-inf"), 0.0, new_largest)  # −inf − (−inf) is NaN
        shrink = tl.exp2(largest - shift)
        weights = tl.exp2(scores - shift[:, None])
        total = total * shrink + tl.sum(weights, 1)
        pulled = tl.dot(weights.to(k.dtype), k, pulled * shrink[:, None], input_precision=PRECISION)
        largest = new_largest

    idle = largest == float("-inf")
    total = tl.where(idle, 1.0, total)
    _store(by_keys, image, head, heads, rows, length, width, pulled / total[:, None], WIDTH)
    sums = tl.where(idle, 0.0, (largest + tl.log2(total)) / LOG2_E)
    tl.store(logsumexp + (image * heads + head) * length + rows, sums, mask=rows < length)


@triton.jit
def forward_columns(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    beta, logsumexp, row_weights,
    mask, mask_b, mask_i, mask_j,
    tokens, tokens_b,
    bias, bias_b, bias_h, bias_i, bias_j,
    by_queries,
    heads, length, width,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """T2 of BLOCK columns, over INNER rows at a time; Aᵀ (w ∘ q) for `row_weights` w that are not None."""
    image, head, start = _program(heads, length, BLOCK)
    columns = start + tl.arange(0, BLOCK)
    real_columns = _real(tokens, image, tokens_b, columns, length)
    k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
    scale = tl.load(beta + head) * LOG2_E
    statistics = (image * heads + head) * length

    pulled = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, length, INNER):
        rows = first + tl.arange(0, INNER)
        real_rows = _real(tokens, image, tokens_b, rows, length)
        q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
        sums = tl.load(logsumexp + statistics + rows, mask=real_rows, other=0.0) * LOG2_E
        allowed = _allowed(
            mask, image, mask_b, mask_j, mask_i, columns, rows, real_columns, real_rows, ATTEND_TO_SELF, -CAUSAL
        )
        products = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        scores = _scores(products, scale, bias, image, head, bias_b, bias_h, bias_j, bias_i, columns, rows, allowed)
        weights = tl.exp2(scores - sums[None, :])
        if row_weights is not None:
            weights = weights * tl.load(row_weights + statistics + rows, mask=real_rows, other=0.0)[None, :]
        pulled = tl.dot(weights.to(q.dtype), q, pulled, input_precision=PRECISION)

    _store(by_queries, image, head, heads, columns, length, width, pulled, WIDTH)


@triton.jit
def backward_rows(
    query, query_b, query_h, query_n, key, key_b, key_h, key_n,
    by_keys, by_keys_b, by_keys_h, by_keys_n,
    grad_by_keys, grad_1_b, grad_1_h, grad_1_n, grad_by_queries, grad_2_b, grad_2_h, grad_2_n,
    beta, logsumexp,
    mask, mask_b, mask_i, mask_j, tokens, tokens_b, bias, bias_b, bias_h, bias_i, bias_j,
    grad_query, row_sums, grad_beta, heads, length, width,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """dq and D (`row_sums`) of BLOCK rows, and each row's share of dβ, twice over INNER columns at a time."""
    image, head, start = _program(heads, length, BLOCK)
    rows = start + tl.arange(0, BLOCK)
    real_rows = _real(tokens, image, tokens_b, rows, length)
    q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
    g1 = _load(grad_by_keys, image, head, grad_1_b, grad_1_h, grad_1_n, rows, real_rows, width, WIDTH)
    statistics = (image * heads + head) * length + rows
    sums = tl.load(logsumexp + statistics, mask=real_rows, other=0.0) * LOG2_E
    temperature = tl.load(beta + head)
    scale = temperature * LOG2_E

    u = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, length, INNER):
        columns = first + tl.arange(0, INNER)
        real_columns = _real(tokens, image, tokens_b, columns, length)
        k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
        g2 = _load(grad_by_queries, image, head, grad_2_b, grad_2_h, grad_2_n, columns, real_columns, width, WIDTH)
        allowed = _allowed(
            mask, image, mask_b, mask_i, mask_j, rows, columns, real_rows, real_columns, ATTEND_TO_SELF, CAUSAL
        )
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = _scores(products, scale, bias, image, head, bias_b, bias_h, bias_i, bias_j, rows, columns, allowed)
        weights = tl.exp2(scores - sums[:, None])
        u = tl.dot(weights.to(g2.dtype), g2, u, input_precision=PRECISION)

    t1 = _load(by_keys, image, head, by_keys_b, by_keys_h, by_keys_n, rows, real_rows, width, WIDTH).to(tl.float32)
    d = tl.sum(g1.to(tl.float32) * t1 + q.to(tl.float32) * u, 1)
    mean_overlap = tl.sum(q.to(tl.float32) * t1, 1)
    tl.store(row_sums + statistics, d, mask=rows < length)

    dbeta = tl.zeros([BLOCK], tl.float32)
    for first in range(0, length, INNER):
        columns = first + tl.arange(0, INNER)
        real_columns = _real(tokens, image, tokens_b, columns, length)
        k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
        g2 = _load(grad_by_queries, image, head, grad_2_b, grad_2_h, grad_2_n, columns, real_columns, width, WIDTH)
        allowed = _allowed(
            mask, image, mask_b, mask_i, mask_j, rows, columns, real_rows, real_columns, ATTEND_TO_SELF, CAUSAL
        )
        overlaps = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = _scores(overlaps, scale, bias, image, head, bias_b, bias_h, bias_i, bias_j, rows, columns, allowed)
        weights = tl.exp2(scores - sums[:, None])
        grad_weights = tl.dot(g1, tl.trans(k), input_precision=PRECISION)
        grad_weights = tl.dot(q, tl.trans(g2), grad_weights, input_precision=PRECISION)
        grad_scores = weights * (grad_weights - d[:, None])
        dbeta += tl.sum(grad_scores * (overlaps - mean_overlap[:, None]), 1)
        u = tl.dot((temperature * grad_scores).to(k.dtype), k, u, input_precision=PRECISION)

    _store(grad_query, image, head, heads, rows, length, width, u, WIDTH)
    tl.store(grad_beta + statistics, dbeta, mask=rows < length)


@triton.jit
def backward_columns(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    grad_by_keys, grad_1_b, grad_1_h, grad_1_n,
    grad_by_queries, grad_2_b, grad_2_h, grad_2_n,
    beta, logsumexp, row_sums,
    mask, mask_b, mask_i, mask_j,
    tokens, tokens_b,
    bias, bias_b, bias_h, bias_i, bias_j,
    grad_key,
    heads, length, width,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """dk of BLOCK columns, over INNER rows at a time."""
    image, head, start = _program(heads, length, BLOCK)
    columns = start + tl.arange(0, BLOCK)
    real_columns = _real(tokens, image, tokens_b, columns, length)
    k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
    g2 = _load(grad_by_queries, image, head, grad_2_b, grad_2_h, grad_2_n, columns, real_columns, width, WIDTH)
    statistics = (image * heads + head) * length
    temperature = tl.load(beta + head)
    scale = temperature * LOG2_E

    dk = tl.zeros([BLOCK, WIDTH], tl.float32)
    for first in range(0, length, INNER):
        rows = first + tl.arange(0, INNER)
        real_rows = _real(tokens, image, tokens_b, rows, length)
        q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
        g1 = _load(grad_by_keys, image, head, grad_1_b, grad_1_h, grad_1_n, rows, real_rows, width, WIDTH)
        sums = tl.load(logsumexp + statistics + rows, mask=real_rows, other=0.0) * LOG2_E
        d = tl.load(row_sums + statistics + rows, mask=real_rows, other=0.0)
        allowed = _allowed(
            mask, image, mask_b, mask_j, mask_i, columns, rows, real_columns, real_rows, ATTEND_TO_SELF, -CAUSAL
        )
        products = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        scores = _scores(products, scale, bias, image, head, bias_b, bias_h, bias_j, bias_i, columns, rows, allowed)
        weights = tl.exp2(scores - sums[None, :])
        grad_weights = tl.dot(k, tl.trans(g1), input_precision=PRECISION)
        grad_weights = tl.dot(g2, tl.trans(q), grad_weights, input_precision=PRECISION)
        grad_scores = temperature * weights * (grad_weights - d[None, :])
        dk = tl.dot(grad_scores.to(q.dtype), q, dk, input_precision=PRECISION)
        dk = tl.dot(weights.to(g1.dtype), g1, dk, input_precision=PRECISION)

    _store(grad_key, image, head, heads, columns, length, width, dk, WIDTH)


@triton.jit
def backward_bias(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    grad_by_keys, grad_1_b, grad_1_h, grad_1_n,
    grad_by_queries, grad_2_b, grad_2_h, grad_2_n,
    beta, logsumexp, row_sums,
    mask, mask_b, mask_i, mask_j,
    tokens, tokens_b,
    bias, bias_b, bias_h, bias_i, bias_j,
    grad_bias,
    heads, length, width,
    images_of_one, heads_of_one, of_heads,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """dbias of BLOCK rows and INNER columns: dS summed over the images and heads that share it.

    `grad_bias` is a contiguous (images or 1, `of_heads`, N, N) in float32. Without `grad_by_keys` the gradient is that
    of L, and `row_sums` its upstream gradient: dS = A ∘ dL.
    """
    wide = tl.cdiv(length, INNER)
    tile = tl.program_id(0) % (tl.cdiv(length, BLOCK) * wide)
    shared = (tl.program_id(0) // (tl.cdiv(length, BLOCK) * wide)).to(tl.int64)
    rows, columns = tile // wide * BLOCK + tl.arange(0, BLOCK), tile % wide * INNER + tl.arange(0, INNER)
    first_image, first_head = shared // of_heads * images_of_one, shared % of_heads * heads_of_one

    total = tl.zeros([BLOCK, INNER], tl.float32)
    for image in range(first_image, first_image + images_of_one):
        real_rows = _real(tokens, image, tokens_b, rows, length)
        real_columns = _real(tokens, image, tokens_b, columns, length)
        allowed = _allowed(
            mask, image, mask_b, mask_i, mask_j, rows, columns, real_rows, real_columns, ATTEND_TO_SELF, CAUSAL
        )
        for head in range(first_head, first_head + heads_of_one):
            q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
            k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
            statistics = (image * heads + head) * length + rows
            sums = tl.load(logsumexp + statistics, mask=real_rows, other=0.0) * LOG2_E
            d = tl.load(row_sums + statistics, mask=real_rows, other=0.0)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            scale = tl.load(beta + head) * LOG2_E
            scores = _scores(products, scale, bias, image, head, bias_b, bias_h, bias_i, bias_j, rows, columns, allowed)
            weights = tl.exp2(scores - sums[:, None])
            if grad_by_keys is None:
                total += weights * d[:, None]
            else:
                g1 = _load(grad_by_keys, image, head, grad_1_b, grad_1_h, grad_1_n, rows, real_rows, width, WIDTH)
                g2 = _load(
                    grad_by_queries, image, head, grad_2_b, grad_2_h, grad_2_n, columns, real_columns, width, WIDTH
                )
                grad_weights = tl.dot(g1, tl.trans(k), input_precision=PRECISION)
                grad_weights = tl.dot(q, tl.trans(g2), grad_weights, input_precision=PRECISION)
                total += weights * (grad_weights - d[:, None])

    pointers = grad_bias + (shared * length + rows[:, None]) * length + columns[None, :]
    tl.store(pointers, total, mask=(rows < length)[:, None] & (columns < length)[None, :])


@triton.jit
def forward_whole(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    beta,
    mask, mask_b, mask_i, mask_j,
    tokens, tokens_b,
    bias, bias_b, bias_h, bias_i, bias_j,
    by_keys, by_queries, logsumexp,
    heads, length, width,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """T1, T2 and L of a head with at most INNER tokens, over BLOCK rows at a time: each weight is computed once."""
    image, head, _ = _program(heads, length, INNER)
    columns = tl.arange(0, INNER)
    real_columns = _real(tokens, image, tokens_b, columns, length)
    k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
    scale = tl.load(beta + head) * LOG2_E
    statistics = (image * heads + head) * length

    pulled = tl.zeros([INNER, WIDTH], tl.float32)
    for first in range(0, length, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        real_rows = _real(tokens, image, tokens_b, rows, length)
        q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
        allowed = _allowed(
            mask, image, mask_b, mask_i, mask_j, rows, columns, real_rows, real_columns, ATTEND_TO_SELF, CAUSAL
        )
        products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = _scores(products, scale, bias, image, head, bias_b, bias_h, bias_i, bias_j, rows, columns, allowed)
        largest = tl.max(scores, 1)
        idle = largest == float("-inf")
        weights = tl.exp2(scores - tl.where(idle, 0.0, largest)[:, None])  # −inf − (−inf) is NaN
        total = tl.where(idle, 1.0, tl.sum(weights, 1))
        weights = (weights / total[:, None]).to(k.dtype)
        t1 = tl.dot(weights, k, input_precision=PRECISION)
        _store(by_keys, image, head, heads, rows, length, width, t1, WIDTH)
        sums = tl.where(idle, 0.0, (largest + tl.log2(total)) / LOG2_E)
        tl.store(logsumexp + statistics + rows, sums, mask=rows < length)
        pulled = tl.dot(tl.trans(weights), q, pulled, input_precision=PRECISION)

    _store(by_queries, image, head, heads, columns, length, width, pulled, WIDTH)


@triton.jit
def backward_whole(
    query, query_b, query_h, query_n,
    key, key_b, key_h, key_n,
    grad_by_keys, grad_1_b, grad_1_h, grad_1_n,
    grad_by_queries, grad_2_b, grad_2_h, grad_2_n,
    beta, logsumexp,
    mask, mask_b, mask_i, mask_j,
    tokens, tokens_b,
    bias, bias_b, bias_h, bias_i, bias_j,
    grad_query, grad_key, row_sums, grad_beta,
    heads, length, width,
    ATTEND_TO_SELF: tl.constexpr, CAUSAL: tl.constexpr, PRECISION: tl.constexpr,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, INNER: tl.constexpr,
):  # fmt: skip
    """dq, dk, D (`row_sums`) and the shares of dβ of a head with at most INNER tokens, over BLOCK rows at a time.

    A whole row is at hand, so that D is Σ_j A ∘ dA, and Σ_j A (q · k_j), which dβ subtracts, likewise.
    """
    image, head, _ = _program(heads, length, INNER)
    columns = tl.arange(0, INNER)
    real_columns = _real(tokens, image, tokens_b, columns, length)
    k = _load(key, image, head, key_b, key_h, key_n, columns, real_columns, width, WIDTH)
    g2 = _load(grad_by_queries, image, head, grad_2_b, grad_2_h, grad_2_n, columns, real_columns, width, WIDTH)
    temperature = tl.load(beta + head)
    scale = temperature * LOG2_E
    statistics = (image * heads + head) * length

    dk = tl.zeros([INNER, WIDTH], tl.float32)
    for first in range(0, length, BLOCK):
        rows = first + tl.arange(0, BLOCK)
        real_rows = _real(tokens, image, tokens_b, rows, length)
        q = _load(query, image, head, query_b, query_h, query_n, rows, real_rows, width, WIDTH)
        g1 = _load(grad_by_keys, image, head, grad_1_b, grad_1_h, grad_1_n, rows, real_rows, width, WIDTH)
        sums = tl.load(logsumexp + statistics + rows, mask=real_rows, other=0.0) * LOG2_E
        allowed = _allowed(
            mask, image, mask_b, mask_i, mask_j, rows, columns, real_rows, real_columns, ATTEND_TO_SELF, CAUSAL
        )
        overlaps = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        scores = _scores(overlaps, scale, bias, image, head, bias_b, bias_h, bias_i, bias_j, rows, columns, allowed)
        weights = tl.exp2(scores - sums[:, None])
        mean_overlap = tl.sum(weights * overlaps, 1)
        grad_scores = tl.dot(g1, tl.trans(k), input_precision=PRECISION)
        grad_scores = tl.dot(q, tl.trans(g2), grad_scores, input_precision=PRECISION)
        d = tl.sum(weights * grad_scores, 1)
        grad_scores = weights * (grad_scores - d[:, None])
        dbeta = tl.sum(grad_scores * (overlaps - mean_overlap[:, None]), 1)
        tl.store(row_sums + statistics + rows, d, mask=rows < length)
        tl.store(grad_beta + statistics + rows, dbeta, mask=rows < length)

        rounded, grad_scores = weights.to(g1.dtype), (temperature * grad_scores).to(k.dtype)
        dq = tl.dot(rounded, g2, input_precision=PRECISION)
        dq = tl.dot(grad_scores, k, dq, input_precision=PRECISION)
        _store(grad_query, image, head, heads, rows, length, width, dq, WIDTH)
        dk = tl.dot(tl.trans(grad_scores), q, dk, input_precision=PRECISION)
        dk = tl.dot(tl.trans(rounded), g1, dk, input_precision=PRECISION)

    _store(grad_key, image, head, heads, columns, length, width, dk, WIDTH)
