// A table of one likelihood: the row kernels as they are, without the code of every other term beside the loop that is counted.
#pragma once

#include "../../../csrc/term_table.h"
#undef VF_FOR_EACH_TERM
#define VF_FOR_EACH_TERM(X) X("bernoulli_logits.none", TermKind::kLikelihood, BernoulliLogits<Clip::kNone>)

#include "../../../csrc/cuda/row_terms.cuh"
