// From tensors to the plain rows and columns that kernels see: broadcasting, permuted events, data types, and the gradients' buffers.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>
#include <string>
#include <vector>

#include "../kernels.h"
#include "../sparse_rows.h"
#include "term_names.h"

namespace vae_fast {
namespace ops {

using at::Tensor;
using at::TensorList;
using ParamList = c10::SmallVector<double, kMaxTermParams>;  // of a term, kept for the backward pass

/// True if any of the tensors is float64: then everything is computed in double.
bool any_double(TensorList tensors);
at::ScalarType compute_type(bool is_double);
/// The kernels' name of a dtype, or an error.
DType dtype_of(const Tensor& t);
/// The same of counts: integers, and bytes as the numbers they are.
DType count_dtype_of(const Tensor& t);

/// The tensors share a device that has kernels, and broadcast; their common shape.
at::DimVector common_shape(TensorList tensors);

/// The leading dimensions of a shape whose last `event_dim` are an event.
inline at::IntArrayRef batch_of(at::IntArrayRef shape, int64_t event_dim) {
  return shape.slice(0, shape.size() - static_cast<size_t>(event_dim));
}

/// A batch of events: shape (*batch, *event), and the order in which the event dimensions lie in memory.
struct Layout {
  at::DimVector shape;
  int64_t event_dim = 0;
  at::DimVector order;  // event dimensions of `shape`, outermost in memory first
  bool ordered = true;  // order is the logical one
  int64_t rows = 1, columns = 1;

  /// The layout that `primary`, broadcast to `shape`, has in memory; with `logical`, the plain row-major one.
  Layout(at::IntArrayRef shape, int64_t event_dim, const Tensor& primary, bool logical);
  at::IntArrayRef batch() const { return batch_of(shape, event_dim); }
  /// A fresh dense tensor of `shape` whose rows lie in this layout.
  Tensor empty(const at::TensorOptions& options) const;
};

/// Prepared inputs of one term, with the tensors that keep copies alive.
struct Term {
  TermArgs args;
  std::vector<Tensor> keep;
  std::shared_ptr<SparseRows> sparse;  // what the first stream's data is, if x is sparse

  /// Points gradient k at a fresh buffer in the layout. Of an input that is the same in every row it holds sums over rows, a few of them,
  /// where the kernels can sum: `columns` are those of all terms of the call, 0 for a kernel that cannot.
  Tensor add_gradient(int k, const Tensor& input, const Layout& layout, int64_t columns);
};

/// A stream over `t` broadcast to the layout; copies, and keeps the copy, only if its event is neither dense in that order nor one value.
Stream stream_of(const Tensor& t, const Layout& layout, bool is_double, std::vector<Tensor>& keep);
/// The same over counts, which may be integers; bytes are numbers here. Sparse ones are read as they are, by way of `sparse`.
Stream count_stream(const Tensor& counts, const Layout& layout, bool is_double, std::vector<Tensor>& keep,
                    std::shared_ptr<SparseRows>& sparse);
/// A stream over a dense tensor of `columns` per row.
Stream dense_stream(const Tensor& t, int64_t columns);

Term prepare_term(TensorList inputs, int32_t term, const Layout& layout, bool is_double, at::ArrayRef<double> params);
/// The bounds behind a term's name. CUDA's kernels read none: a call that has some gives them bounded scales.
Bound bound_of(c10::string_view name, const Tensor& like);
/// Where a number on the device lies, that takes the place of a Python number: float64, one element. Null for none.
const double* number_at(const std::optional<Tensor>& number, const Tensor& like);

/// A fresh dense buffer for the gradient of an input that was broadcast to the layout.
Tensor gradient_buffer(const Tensor& input, const Layout& layout, bool is_double);

/// Upstream gradients of `rows` rows, as the kernels read them.
RowGrad row_grad(const Tensor& grad, at::IntArrayRef batch, bool is_double, std::vector<Tensor>& keep);

/// The sum of a float32 or float64 tensor over what `sizes` broadcasts. On the CPU its order does not depend on the number of threads, as
/// that of at::sum_to does.
Tensor ordered_sum_to(const Tensor& t, at::IntArrayRef sizes);
/// The sum or mean of all of its values, likewise.
Tensor total(const Tensor& t, bool mean);

/// The gradient of a broadcast or converted input from that of its expansion.
Tensor to_input(Tensor grad, const Tensor& input);

}  // namespace ops
}  // namespace vae_fast
