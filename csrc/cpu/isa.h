// Included last by one file of each instruction set: every kernel but the terms of row sums, and the table that points at them all.
#pragma once

#include "group_sums.h"
#include "lanes.h"
#include "logsumexp.h"
#include "mdn.h"
#include "mixture.h"
#include "probe.h"
#include "reduce.h"
#include "row_sums.h"
#include "sample.h"
#include "table.h"

#define VF_DEFINE_TABLE(name)                                                                                    \
  const vae_fast::cpu::KernelTable& vae_fast::cpu::table_##name() {                                              \
    namespace isa = vae_fast::VF_ISA;                                                                            \
    static const KernelTable table = {#name,                                                                     \
                                      {&isa::term_rows<float>, &isa::term_rows<double>},                         \
                                      {&isa::term_elements<float>, &isa::term_elements<double>},                 \
                                      {&isa::sample_rows<float>, &isa::sample_rows<double>},                     \
                                      {&isa::sample_backward_rows<float>, &isa::sample_backward_rows<double>},   \
                                      {&isa::logsumexp<float>, &isa::logsumexp<double>},                         \
                                      {&isa::logsumexp_backward<float>, &isa::logsumexp_backward<double>},       \
                                      {&isa::mixture_plan<float>, &isa::mixture_plan<double>},                   \
                                      {&isa::mixture_rows<float>, &isa::mixture_rows<double>},                   \
                                      {&isa::mixture_backward_rows<float>, &isa::mixture_backward_rows<double>}, \
                                      {&isa::mdn_scratch_bytes<float>, &isa::mdn_scratch_bytes<double>},         \
                                      {&isa::mdn_rows<float>, &isa::mdn_rows<double>},                           \
                                      {&isa::mdn_backward_rows<float>, &isa::mdn_backward_rows<double>},         \
                                      {&isa::group_scratch_bytes<float>, &isa::group_scratch_bytes<double>},     \
                                      {&isa::group_cells<float>, &isa::group_cells<double>},                     \
                                      {&isa::softmax_cells<float>, &isa::softmax_cells<double>},                 \
                                      {&isa::add_rows<float>, &isa::add_rows<double>},                           \
                                      &isa::fma_probe,                                                           \
                                      &isa::scale_values};                                                       \
    return table;                                                                                                \
  }
