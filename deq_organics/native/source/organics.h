/* What the callers of the kernels hand over. Matrices are contiguous, row after row; sizes were
   checked by the caller. Every function returns 0, or 1 where there was no memory. */

#ifndef ORGANICS_H
#define ORGANICS_H

#include <stdint.h>

/* A layer of circuits that steps through a sequence; recurrent/backends/native has the equations.

   `packed_*` are matrices (depth, columns), cut into panels of columns: each panel is contiguous,
   row after row, its columns padded with zeros. */
struct sequence {
    int64_t steps, batch, neurons, inputs;
    int64_t tile;    /* Samples that go through the sequence together. */
    int64_t segment; /* Steps whose gradients are summed by one product. */
    int64_t keep;    /* Whether a way back follows. */
    int64_t rectified, after_weights, identity, dynamic;
    const float *packed_forward;  /* Wzx, Wr, W, then (Wx, Wy, Wa) of b and of b0, transposed. */
    const float *packed_backward; /* Wzx transposed, W, Wr, Wy of b and of b0, Wa of both. */
    const float *packed_inputs;   /* Wzx, Wx of b and of b0: their columns are the inputs. */
    const float *step_y, *step_a; /* (n) */
    const float *inhibitory_drive;   /* k_a sigma^2, (n) */
    const float *step_gains;         /* (2n) */
    const float *diagonal;           /* Wr where it is diagonal, (n) */
    const float *x;                  /* (T, B, m) */
    float *ys;                       /* (T, B, n) */
    float *activities, *recurrent;   /* (T, B, n) */
    float *gates;                    /* (T, B, 2n) */
    float *checkpoints;              /* Gains before each segment, (segments, B, 2n) */
    float *y, *a, *gains;            /* (B, n), (B, n), (B, 2n): the first state, then the last. */
    const float *first_y, *first_a;  /* (B, n) */
    const float *grad_ys;            /* (T, B, n) or null */
    float *adjoint_y, *adjoint_a, *adjoint_gains; /* Of the last state, then of the first. */
    float *grad_x;                   /* (T, B, m) or null */
    float *gradients;                /* Of the weights; see below. Zero before. */
};

/* `gradients` are matrices of `width` columns, n padded to whole panels: Wr (n rows; one where it
   is diagonal), W (n), Wy and Wa of b, of b0 (n each), then the transposed Wzx, Wx of b and of b0
   (m each), then rows: 1 - k_y, 1 - k_a, the inhibitory drive, k of b and of b0. */

/* Circuits that share their weights; deq_organics/steady_state/backends/native has the equations.

   `packed` are the matrices (n, n) that rows are multiplied with from the right, in panels as
   above: Wr, W and the inverse that makes the preconditioner. For the steady state they are
   transposed; for the adjoint they are as they are, and the transposed Wr follows. Where Wr is I,
   W is the only one. */
struct circuits {
    int64_t neurons;
    int64_t tile; /* Samples that iterate together; as they finish others take their place. */
    int64_t most_steps;
    int64_t rectified;
    int64_t identity;     /* Whether Wr is I: then there is a closed form. */
    int64_t drive_stride; /* From one sample's inhibitory drive to the next one's; 0 if shared. */
    float tolerance;      /* Of the iteration. */
    float accepted;       /* Of the residual that is measured in the end. */
    float largest_weight; /* Of W. */
    const float *packed;
    const float *diagonal;  /* Of Wr, (n) */
    const float *reference; /* Inhibitory firing rates to which the inverse belongs, (n) */
    const float *input_drive, *inhibitory_drive;
    float *y, *a;                 /* (B, n), found by one kernel and given to the other. */
    float *residual;              /* (B) */
    int64_t *iterations;          /* (B) */
    uint8_t *settled;             /* (B): whether torch need not look again. */
    const int64_t *status;        /* (B), 0 where there is a steady state. */
    const float *grad_y, *grad_a; /* (B, n) or null */
    float *adjoint_y, *adjoint_a, *gained, *pooled; /* (B, n) */
};

/* Jacobians in balanced coordinates by their factors; deq_organics/stability/balanced.py says what
   they are. The factors are (B, n). A stride is from one circuit's to the next one's, 0 if shared. */
struct forms {
    int64_t neurons;
    int64_t recurrent_stride, pool_stride;    /* Of the matrices (n, n) */
    int64_t decay_y_stride, decay_a_stride;
    float bound;
    const float *recurrent_weight; /* Null where it is the identity. */
    const float *normalization_weight;
    const float *recurrence, *slope, *inhibition, *pooling, *excitation, *pool;
    const float *decay_y, *decay_a;
    const float *added; /* Columns (B, 2, 2n) whose squares are added to the form, or null. */
    uint8_t *exceeds;   /* (B) */
};

/* Gated input drives, sigmoid(logit) d / |d|, row by row. */
struct gate {
    int64_t neurons;
    const float *drive, *logit; /* (rows, n) */
    const float *grad;          /* (rows, n), or null: no gradient is wanted. */
    float *gated;               /* (rows, n) */
    float *grad_drive, *grad_logit;
};

#endif
