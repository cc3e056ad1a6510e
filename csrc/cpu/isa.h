// Included last by the one file of each instruction set: every kernel, and the table that points at them.
#pragma once

#include "lanes.h"
#include "logsumexp.h"
#include "row_terms.h"
#include "sample.h"
#include "table.h"

#define VF_DEFINE_TABLE(name)                                                                                  \
  const vae_fast::cpu::KernelTable& vae_fast::cpu::table_##name() {                                            \
    namespace isa = vae_fast::VF_ISA;                                                                          \
    static const KernelTable table = {#name,                                                                   \
                                      {&isa::term_rows<float>, &isa::term_rows<double>},                       \
                                      {&isa::sample_rows<float>, &isa::sample_rows<double>},                   \
                                      {&isa::sample_backward_rows<float>, &isa::sample_backward_rows<double>}, \
                                      {&isa::logsumexp<float>, &isa::logsumexp<double>},                       \
                                      {&isa::logsumexp_backward<float>, &isa::logsumexp_backward<double>},     \
                                      &isa::scale_values};                                                     \
    return table;                                                                                              \
  }
