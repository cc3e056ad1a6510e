// Every term of a row sum, by name. A new one is a struct in csrc/math and a row here; what expands the table, and nothing else, is
// compiled anew: csrc/cpu/terms_*.cpp, csrc/cuda/row_terms*.cu and sample*.cu, csrc/ops/term_names.cpp.
//
// X(name, kind, Struct): the name is what vae_fast/terms.py calls it, the kind what its inputs are; the struct comes last, as it may hold
// commas.
#pragma once

#include "math/bernoulli.h"
#include "math/continuous_bernoulli.h"
#include "math/counts.h"
#include "math/discretized.h"
#include "math/gaussian.h"
#include "math/laplace.h"
#include "math/log_normal.h"
#include "math/student_t.h"
#include "term_args.h"

#define VF_FOR_EACH_SCALE(X, family, kind, Struct)       \
  X(family ".logvar", kind, Struct(ScaleForm::kLogVar))  \
  X(family ".log_std", kind, Struct(ScaleForm::kLogStd)) \
  X(family ".std", kind, Struct(ScaleForm::kStd))        \
  X(family ".var", kind, Struct(ScaleForm::kVar))        \
  X(family ".softplus", kind, Struct(ScaleForm::kSoftplus))
#define VF_FOR_EACH_CLIP(X, family, Struct)                       \
  X(family ".none", TermKind::kLikelihood, Struct<Clip::kNone>)   \
  X(family ".clamp", TermKind::kLikelihood, Struct<Clip::kClamp>) \
  X(family ".add", TermKind::kLikelihood, Struct<Clip::kAdd>)     \
  X(family ".bce", TermKind::kLikelihood, Struct<Clip::kBce>)
#define VF_FOR_EACH_COUNT(X)                                                                                   \
  X("poisson.rate", TermKind::kCounts, Poisson<Space::kLinear>)                                                \
  X("poisson.log_rate", TermKind::kCounts, Poisson<Space::kLog>)                                               \
  X("negative_binomial.linear", TermKind::kCounts, NegativeBinomial<Space::kLinear>)                           \
  X("negative_binomial.log", TermKind::kCounts, NegativeBinomial<Space::kLog>)                                 \
  X("zero_inflated_negative_binomial.linear", TermKind::kCounts, ZeroInflatedNegativeBinomial<Space::kLinear>) \
  X("zero_inflated_negative_binomial.log", TermKind::kCounts, ZeroInflatedNegativeBinomial<Space::kLog>)
#define VF_KL(form) Kl<form, false>
#define VF_KL_PRIOR(form) Kl<form, true>
#define VF_GAUSSIAN(form) Gaussian<form>
#define VF_LAPLACE(form) Laplace<form>
#define VF_LOG_NORMAL(form) LogNormal<form>
#define VF_STUDENT_T(form) StudentT<form>

#define VF_FOR_EACH_TERM(X)                                                 \
  VF_FOR_EACH_SCALE(X, "kl", TermKind::kKl, VF_KL)                          \
  VF_FOR_EACH_SCALE(X, "kl_prior", TermKind::kKl, VF_KL_PRIOR)              \
  VF_FOR_EACH_CLIP(X, "bernoulli_logits", BernoulliLogits)                  \
  VF_FOR_EACH_CLIP(X, "bernoulli_probs", BernoulliProbs)                    \
  X("gaussian_unit", TermKind::kLikelihood, GaussianUnit)                   \
  VF_FOR_EACH_SCALE(X, "gaussian", TermKind::kLikelihood, VF_GAUSSIAN)      \
  VF_FOR_EACH_SCALE(X, "laplace", TermKind::kLikelihood, VF_LAPLACE)        \
  VF_FOR_EACH_SCALE(X, "log_normal", TermKind::kLikelihood, VF_LOG_NORMAL)  \
  X("continuous_bernoulli", TermKind::kLikelihood, ContinuousBernoulli)     \
  VF_FOR_EACH_SCALE(X, "student_t", TermKind::kLikelihood, VF_STUDENT_T)    \
  X("discretized_logistic", TermKind::kLikelihood, DiscretizedLogisticTerm) \
  VF_FOR_EACH_COUNT(X)
