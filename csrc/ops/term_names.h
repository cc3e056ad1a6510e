// The table of terms as the ops know it: by name.
#pragma once

#include <c10/util/string_view.h>

#include <cstddef>
#include <cstdint>

#include "../term_args.h"

namespace vae_fast {
namespace ops {

/// A term's name may be followed by the bounds of its scale: "gaussian.logvar|clamp|-7.0|7.0". What follows the name, or nothing: the
/// bounds of the posterior's scale in a KL or a sample, of the last input in a likelihood.
Bound bound_of(c10::string_view name);
/// The index of a term in the table, its bounds left out, or an error that lists the names.
int32_t term_index(c10::string_view name);
/// Refuse another number of inputs or parameters than the term takes.
void check_term(int32_t term, size_t inputs, size_t params);
/// Whether the term is a KL divergence, not a likelihood.
bool is_kl(int32_t term);
/// Whether the term's first input is a count.
bool is_of_counts(int32_t term);
/// The ScaleForm behind the dot of a term's name.
int32_t scale_form(c10::string_view name);

}  // namespace ops
}  // namespace vae_fast
