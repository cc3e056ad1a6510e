// Matrix products, which are the libraries' own work: this only chooses between those that torch brings (product_choice.h).
#pragma once

#include <limits>

#include "ops.h"

namespace vae_fast {
namespace ops {

/// input (m, k) weight^T (k, n) + bias (n): torch's linear for two dimensions, without its autograd; in `out` (m, n), if given.
///
/// float32 and bfloat16 products of some size on the CPU go to the faster of torch's own and oneDNN. Both compute float32 in float32;
/// oneDNN adds up the k terms of a sum one after the other, MKL in blocks, so that over many terms MKL's rounding error is the smaller.
/// Where the error is promised to be no larger than torch's, sums of more than kLongestSum terms are left to it.
Tensor linear_product(const Tensor& input, const Tensor& weight, const OptionalTensor& bias,
                      int64_t longest_sum = std::numeric_limits<int64_t>::max(), const OptionalTensor& out = std::nullopt);
constexpr int64_t kLongestSum = 256;

/// sum += left^T (n, m) right (m, k), for dense (m, n) and (m, k); if `sum` is undefined it becomes that product. The sum over m goes to
/// torch's own product, or to oneDNN in pieces of at most kLongestSum. `sum` may be wider than they are.
void add_outer_product(Tensor& sum, const Tensor& left, const Tensor& right);

}  // namespace ops
}  // namespace vae_fast
