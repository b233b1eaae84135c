"""The steps of a sequence and their adjoints, a Triton program for each tile of samples.

A program walks through all steps. Its state, ``(n, samples)`` with the neurons as rows, stays in
registers; of the six matrices of a step one block after the other comes through shared memory, the
next ones on their way while one is multiplied. All products of a step read the previous state only,
so that one loop over the blocks of all steps never waits for a step to end before it fetches more.

Neurons are padded to ``PADDED``, a power of two, with zero weights; the padded ones stay at rest
and are never stored. Matrices are multiplied in blocks of ``ROWS`` by ``COLUMNS``, ``GROUP`` of
them at a time.
"""

import triton
import triton.language as tl

__all__ = ["adjoint_kernel", "sequence_kernel"]


@triton.jit(do_not_specialize=["steps", "samples"])
def sequence_kernel(
    weights,
    keep_y,
    keep_a,
    semisaturation,
    gate_step,
    y_state,
    a_state,
    gain_state,
    drives,
    gates,
    ys,
    activities,
    gains,
    steps,
    samples,
    neurons,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    SAMPLES: tl.constexpr,
    RECTIFIED: tl.constexpr,
    AFTER_WEIGHTS: tl.constexpr,
    IDENTITY: tl.constexpr,
    DYNAMIC: tl.constexpr,
    KEEP: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All steps of a tile of samples, in place of the state.

    In: the blocks of ``W``, ``Wby``, ``Wba``, ``Wb0y``, ``Wb0a``, ``Wr``, as far as the circuit has
    them, in ``weights``; the state ``(samples, neurons)``, the gains ``(samples, 2 neurons)``; per
    step ``drives`` ``k_y Wzx x`` and ``gates`` ``Wgx x``. Out: the state; ``ys``, and with ``KEEP``
    per step ``u`` over ``drives``, ``f`` over ``gates``, ``activities`` and ``gains``.
    """
    neuron, inside, spot, gate_spot = _tile(samples, neurons, PADDED, SAMPLES)
    y = tl.load(y_state + spot, inside, 0.0)
    a = tl.load(a_state + spot, inside, 0.0)
    b = tl.load(gain_state + gate_spot, inside, 0.0)
    b0 = tl.load(gain_state + gate_spot + neurons, inside, 0.0)
    kept_y = tl.load(keep_y + neuron, neuron < neurons, 0.0)[:, None]
    kept_a = tl.load(keep_a + neuron, neuron < neurons, 0.0)[:, None]
    baseline = tl.load(semisaturation + neuron, neuron < neurons, 0.0)[:, None]
    if DYNAMIC:
        step_b = tl.load(gate_step + neuron, neuron < neurons, 0.0)[:, None]
        step_b0 = tl.load(gate_step + neurons + neuron, neuron < neurons, 0.0)[:, None]
    zero = tl.full((PADDED, SAMPLES), 0.0, tl.float32)
    u, pool, from_b, from_b0 = zero, zero, zero, zero
    drive, gate_b, gate_b0 = zero, zero, zero
    ACROSS: tl.constexpr = PADDED // COLUMNS
    BLOCKS: tl.constexpr = PADDED // ROWS * ACROSS
    RECURRENT: tl.constexpr = 5 if DYNAMIC else 1
    GROUPS: tl.constexpr = (RECURRENT if IDENTITY else RECURRENT + 1) * BLOCKS // GROUP
    entry = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    for count in tl.range(0, steps * GROUPS, num_stages=STAGES):
        group = count % GROUPS
        if group == 0:
            drive = tl.load(drives + spot, inside, 0.0)
            if DYNAMIC:
                gate_b = tl.load(gates + gate_spot, inside, 0.0)
                gate_b0 = tl.load(gates + gate_spot + neurons, inside, 0.0)
        active = tl.maximum(y, 0.0) if RECTIFIED else y
        source = y if AFTER_WEIGHTS else active
        positive = tl.maximum(a, 0.0)
        for member in tl.static_range(GROUP):
            index = group * GROUP + member
            weight = tl.load(weights + index * (ROWS * COLUMNS) + entry)
            product = index // BLOCKS
            operand = tl.where(product % 2 == 1, y, a)
            operand = tl.where(product == 0, active * active * positive, operand)
            operand = tl.where(product == RECURRENT, source, operand)
            operand = _part(operand, index % ACROSS, PADDED, COLUMNS, SAMPLES)
            part = tl.dot(weight, operand.to(weight.dtype), input_precision=PRECISION)
            if ROWS < PADDED:
                part = _whole(part, index % BLOCKS // ACROSS, PADDED, ROWS, SAMPLES)
            pool += tl.where(product == 0, part, 0.0)
            u += tl.where(product == RECURRENT, part, 0.0)
            if DYNAMIC:
                from_b += tl.where((product == 1) | (product == 2), part, 0.0)
                from_b0 += tl.where((product == 3) | (product == 4), part, 0.0)
        if group == GROUPS - 1:
            if IDENTITY:
                u = (1.0 - kept_y) * source
            if AFTER_WEIGHTS:
                u = tl.maximum(u, 0.0)
            if RECTIFIED:
                drive = tl.maximum(drive, 0.0)
            y = kept_y * y + b * drive + (1.0 - tl.sqrt_rn(positive)) * u
            a = kept_a * a + baseline * b0 * b0 + pool
            tl.store(ys + spot, y, inside)
            if KEEP:
                tl.store(drives + spot, u, inside)
                tl.store(activities + spot, a, inside)
                activities += samples * neurons
            ys += samples * neurons
            drives += samples * neurons
            if DYNAMIC:
                gate_b = tl.sigmoid(gate_b + from_b)
                gate_b0 = tl.sigmoid(gate_b0 + from_b0)
                b += step_b * (gate_b - b)
                b0 += step_b0 * (gate_b0 - b0)
                if KEEP:
                    tl.store(gates + gate_spot, gate_b, inside)
                    tl.store(gates + gate_spot + neurons, gate_b0, inside)
                    tl.store(gains + gate_spot, b, inside)
                    tl.store(gains + gate_spot + neurons, b0, inside)
                    gains += samples * neurons * 2
                gates += samples * neurons * 2
            u, pool, from_b, from_b0 = zero, zero, zero, zero
    tl.store(y_state + spot, y, inside)
    tl.store(a_state + spot, a, inside)
    if DYNAMIC:
        tl.store(gain_state + gate_spot, b, inside)
        tl.store(gain_state + gate_spot + neurons, b0, inside)


@triton.jit(do_not_specialize=["steps", "samples"])
def adjoint_kernel(
    weights,
    keep_y,
    keep_a,
    semisaturation,
    gate_step,
    adjoint_y,
    adjoint_a,
    adjoint_gain,
    drives,
    gates,
    recurrent,
    ys,
    activities,
    gains,
    grad_ys,
    grad_us,
    grad_as,
    grad_gates,
    grad_drives,
    sums,
    steps,
    samples,
    neurons,
    PADDED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP: tl.constexpr,
    SAMPLES: tl.constexpr,
    RECTIFIED: tl.constexpr,
    AFTER_WEIGHTS: tl.constexpr,
    IDENTITY: tl.constexpr,
    DYNAMIC: tl.constexpr,
    GIVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """All steps of a tile of samples backwards, in place of the adjoints of the state.

    ``weights`` are the transposes of those above: the first needs nothing but the adjoint, and is
    multiplied while the step's states arrive; ``ys``, ``activities`` and ``gains`` hold the
    states before each step. Out: the adjoints of the first state; per step the gradients of ``u``,
    of the new ``a``, of the gates before their sigmoid and of the drive before its rectifier; in
    ``sums (programs, 5, PADDED)`` those of ``keep_y``, ``keep_a``, ``semisaturation`` and
    ``gate_step``. ``GIVEN`` says whether there are ``grad_ys``.
    """
    neuron, inside, spot, gate_spot = _tile(samples, neurons, PADDED, SAMPLES)
    v = tl.load(adjoint_y + spot, inside, 0.0)
    w = tl.load(adjoint_a + spot, inside, 0.0)
    h = tl.load(adjoint_gain + gate_spot, inside, 0.0)
    h0 = tl.load(adjoint_gain + gate_spot + neurons, inside, 0.0)
    kept_y = tl.load(keep_y + neuron, neuron < neurons, 0.0)[:, None]
    kept_a = tl.load(keep_a + neuron, neuron < neurons, 0.0)[:, None]
    baseline = tl.load(semisaturation + neuron, neuron < neurons, 0.0)[:, None]
    zero = tl.full((PADDED, SAMPLES), 0.0, tl.float32)
    if DYNAMIC:
        b, b0, gate_b, gate_b0 = zero, zero, zero, zero
        step_b = tl.load(gate_step + neuron, neuron < neurons, 0.0)[:, None]
        step_b0 = tl.load(gate_step + neurons + neuron, neuron < neurons, 0.0)[:, None]
    else:
        b = tl.load(gains + gate_spot, inside, 0.0)
        b0 = tl.load(gains + gate_spot + neurons, inside, 0.0)
    sum_y, sum_a, sum_c, sum_b, sum_b0 = zero, zero, zero, zero, zero
    from_u, from_pool, from_gates_y, from_gates_a = zero, zero, zero, zero
    y, a, u, drive = zero, zero, zero, zero
    ACROSS: tl.constexpr = PADDED // COLUMNS
    BLOCKS: tl.constexpr = PADDED // ROWS * ACROSS
    RECURRENT: tl.constexpr = 5 if DYNAMIC else 1
    GROUPS: tl.constexpr = (RECURRENT if IDENTITY else RECURRENT + 1) * BLOCKS // GROUP
    entry = tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    # What belongs to the step that comes next, the newest first; the same for gates below.
    step = (steps - 1).to(tl.int64) * samples * neurons
    for count in tl.range(0, steps * GROUPS, num_stages=STAGES):
        group = count % GROUPS
        if group == 0:
            y = tl.load(ys + step + spot, inside, 0.0)
            a = tl.load(activities + step + spot, inside, 0.0)
            u = tl.load(recurrent + step + spot, inside, 0.0)
            drive = tl.load(drives + step + spot, inside, 0.0)
            if DYNAMIC:
                b = tl.load(gains + 2 * step + gate_spot, inside, 0.0)
                b0 = tl.load(gains + 2 * step + gate_spot + neurons, inside, 0.0)
                gate_b = tl.load(gates + 2 * step + gate_spot, inside, 0.0)
                gate_b0 = tl.load(gates + 2 * step + gate_spot + neurons, inside, 0.0)
            if GIVEN:
                v += tl.load(grad_ys + step + spot, inside, 0.0)
        positive = tl.maximum(a, 0.0)
        root = tl.sqrt_rn(positive)
        grad_u = (1.0 - root) * v
        if AFTER_WEIGHTS:
            grad_u = tl.where(u > 0.0, grad_u, 0.0)
        if DYNAMIC:
            grad_b = step_b * gate_b * (1.0 - gate_b) * h
            grad_b0 = step_b0 * gate_b0 * (1.0 - gate_b0) * h0
        else:
            grad_b, grad_b0 = h, h0
        for member in tl.static_range(GROUP):
            index = group * GROUP + member
            weight = tl.load(weights + index * (ROWS * COLUMNS) + entry)
            product = index // BLOCKS
            operand = tl.where(product < 3, grad_b, grad_b0)
            operand = tl.where(product == 0, w, operand)
            operand = tl.where(product == RECURRENT, grad_u, operand)
            operand = _part(operand, index % ACROSS, PADDED, COLUMNS, SAMPLES)
            part = tl.dot(weight, operand.to(weight.dtype), input_precision=PRECISION)
            if ROWS < PADDED:
                part = _whole(part, index % BLOCKS // ACROSS, PADDED, ROWS, SAMPLES)
            from_pool += tl.where(product == 0, part, 0.0)
            from_u += tl.where(product == RECURRENT, part, 0.0)
            if DYNAMIC:
                from_gates_y += tl.where((product == 1) | (product == 3), part, 0.0)
                from_gates_a += tl.where((product == 2) | (product == 4), part, 0.0)
        if group == GROUPS - 1:
            if IDENTITY:
                from_u = (1.0 - kept_y) * grad_u
            grad_drive = v * b
            if RECTIFIED:
                active = tl.maximum(y, 0.0)
                grad_drive = tl.where(drive > 0.0, grad_drive, 0.0)
                drive = tl.maximum(drive, 0.0)
            else:
                active = y
            tl.store(grad_us + step + spot, grad_u, inside)
            tl.store(grad_as + step + spot, w, inside)
            tl.store(grad_drives + step + spot, grad_drive, inside)
            sum_y += v * y
            sum_a += w * a
            sum_c += w * b0 * b0
            if DYNAMIC:
                tl.store(grad_gates + 2 * step + gate_spot, grad_b, inside)
                tl.store(grad_gates + 2 * step + gate_spot + neurons, grad_b0, inside)
                sum_b += h * (gate_b - b)
                sum_b0 += h0 * (gate_b0 - b0)
                h -= step_b * h
                h0 -= step_b0 * h0
            h += v * drive
            h0 += 2.0 * baseline * b0 * w
            silent = positive == 0.0
            inhibition = tl.where(silent, 0.0, u / tl.where(silent, 1.0, 2.0 * root))
            new_v = 2.0 * active * positive * from_pool + from_gates_y
            if RECTIFIED and not AFTER_WEIGHTS:
                new_v += tl.where(y > 0.0, from_u, 0.0)
            else:
                new_v += from_u
            new_w = tl.where(silent, 0.0, active * active) * from_pool + from_gates_a
            w = kept_a * w + new_w - inhibition * v
            v = kept_y * v + new_v
            from_u, from_pool, from_gates_y, from_gates_a = zero, zero, zero, zero
            step -= samples * neurons
    tl.store(adjoint_y + spot, v, inside)
    tl.store(adjoint_a + spot, w, inside)
    tl.store(adjoint_gain + gate_spot, h, inside)
    tl.store(adjoint_gain + gate_spot + neurons, h0, inside)
    sums += tl.program_id(0) * 5 * PADDED + neuron
    tl.store(sums, tl.sum(sum_y, 1))
    tl.store(sums + PADDED, tl.sum(sum_a, 1))
    tl.store(sums + 2 * PADDED, tl.sum(sum_c, 1))
    tl.store(sums + 3 * PADDED, tl.sum(sum_b, 1))
    tl.store(sums + 4 * PADDED, tl.sum(sum_b0, 1))


@triton.jit
def _tile(samples, neurons, PADDED: tl.constexpr, SAMPLES: tl.constexpr):
    """A program's neurons and samples, which are inside, and where they lie in a step's rows."""
    neuron = tl.arange(0, PADDED)
    column = tl.program_id(0) * SAMPLES + tl.arange(0, SAMPLES)
    inside = (neuron < neurons)[:, None] & (column < samples)[None, :]
    spot = column[None, :] * neurons + neuron[:, None]
    gate_spot = column[None, :] * (2 * neurons) + neuron[:, None]
    return neuron, inside, spot, gate_spot


@triton.jit
def _part(tile, number, PADDED: tl.constexpr, PART: tl.constexpr, SAMPLES: tl.constexpr):
    """Of the parts of ``PART`` neurons of a tile the one of that number, ``(PART, SAMPLES)``.

    Even where there is one part only: the sum keeps Triton from giving the state the layout of a
    product's operand, in which every warp holds all of it.
    """
    parts = tl.reshape(tile, (PADDED // PART, PART, SAMPLES))
    here = tl.arange(0, PADDED // PART)[:, None, None] == number
    return tl.sum(tl.where(here, parts, 0.0), 0)


@triton.jit
def _whole(part, number, PADDED: tl.constexpr, PART: tl.constexpr, SAMPLES: tl.constexpr):
    """The tile whose part of that number is ``part``, and that is zero elsewhere."""
    here = tl.arange(0, PADDED // PART)[:, None, None] == number
    return tl.reshape(tl.where(here, part[None, :, :], 0.0), (PADDED, SAMPLES))
