// Terms over groups of parameters: mixtures over cells, and softmaxes over classes. The forward pass keeps the inputs and, where one is
// wanted, the gradient.
#include <ATen/ExpandUtils.h>
#include <ATen/ops/aminmax.h>
#include <ATen/ops/empty.h>
#include <ATen/record_function.h>

#include <algorithm>

#include "../group_table.h"
#include "csr.h"
#include "device.h"
#include "softmax.h"
#include "written.h"

namespace vae_fast {
namespace ops {
namespace {

/// group_terms with values needs scratch on CUDA: partial sums.
void launch(const Tensor& like, GroupArgs& args) {
#if defined(VF_WITH_CUDA)
  Tensor partials;
  if (like.is_cuda() && args.value != nullptr) {
    partials = at::empty({cuda::group_terms_partials(args)}, like.options().dtype(at::kDouble));
    args.partials = partials.data_ptr<double>();
  }
#endif
  VF_LAUNCH(like, group_terms, args);
}

struct GroupInfo {
  const char* name;
  int64_t slots, data;
};

const GroupInfo& group_info(string_view name, int32_t& index) {
  using namespace generic::math;
  static const std::vector<GroupInfo> all = {
#define VF_ROW(name, ...) {name, __VA_ARGS__::kSlots, __VA_ARGS__::kData},
      VF_FOR_EACH_GROUP(VF_ROW)
#undef VF_ROW
  };
  std::string names;
  for (size_t i = 0; i < all.size(); ++i) {
    if (name == all[i].name) return index = static_cast<int32_t>(i), all[i];
    names += std::string(names.empty() ? "" : ", ") + all[i].name;
  }
  TORCH_CHECK_VALUE(false, "term='", name, "': expected one of ", names);
}

/// A tensor (*batch, *event) whose event holds groups along `dim` (counted from the end), broadcast to a batch, as rows of (outer, group,
/// inner).
struct Grouped {
  Layout layout;
  int64_t outer = 1, group = 1, inner = 1;
  Stream stream;

  Grouped(const Tensor& t, at::IntArrayRef batch, int64_t dim, int64_t event_dim, bool is_double, std::vector<Tensor>& keep)
      : layout(full_shape(t, batch, event_dim), event_dim, t, true) {
    const int64_t dims = static_cast<int64_t>(layout.shape.size());
    group = layout.shape[static_cast<size_t>(dims + dim)];
    for (int64_t d = dims - event_dim; d < dims + dim; ++d) outer *= layout.shape[static_cast<size_t>(d)];
    for (int64_t d = dims + dim + 1; d < dims; ++d) inner *= layout.shape[static_cast<size_t>(d)];
    stream = stream_of(t, layout, is_double, keep);
    if (stream.inner_stride == 1) return;  // else an event that is one value everywhere: written out
    keep.push_back(t.expand(layout.shape).contiguous());
    stream = stream_of(keep.back(), layout, is_double, keep);
  }

 private:
  static at::DimVector full_shape(const Tensor& t, at::IntArrayRef batch, int64_t event_dim) {
    at::DimVector shape(batch);
    for (const int64_t size : t.sizes().slice(static_cast<size_t>(t.dim() - event_dim))) shape.push_back(size);
    return shape;
  }
};

at::DimVector common_batch(const Tensor& x, const Tensor& params, int64_t dim, int64_t event_dim, int64_t data) {
  TORCH_CHECK_VALUE(x.device() == params.device(), "tensors on ", x.device(), " and ", params.device(), ": expected one device");
  TORCH_CHECK_VALUE(event_dim >= 1 && event_dim <= std::min(x.dim(), params.dim()) && dim < 0 && dim >= -event_dim, "dim=", dim,
                    ", event_dim=", event_dim, ": expected a dimension of an event of ", x.sizes(), " and ", params.sizes());
  for (int64_t d = -event_dim; d < 0; ++d) {
    const int64_t expected = d == dim ? data : params.size(d);
    TORCH_CHECK_VALUE(x.size(d) == expected, "x has shape ", x.sizes(), ", the parameters ", params.sizes(), ": expected size ", expected,
                      " in dimension ", d);
  }
  return at::infer_size_dimvector(batch_of(x.sizes(), event_dim), batch_of(params.sizes(), event_dim));
}

// --- mixtures over cells ---------------------------------------------------------------------------------------------

struct GroupProblem {
  bool is_double;
  at::DimVector batch;
  std::vector<Tensor> keep;
  GroupArgs args;
  std::optional<Grouped> params;

  GroupProblem(const Tensor& x, const Tensor& given, string_view term, Numbers numbers, int64_t dim, int64_t event_dim)
      : is_double(any_double({x, given})) {
    const GroupInfo& info = group_info(term, args.term);
    TORCH_CHECK_VALUE(numbers.size() == kMaxGroupNumbers, "term '", info.name, "' takes ", kMaxGroupNumbers, " numbers, got ",
                      numbers.size());
    batch = common_batch(x, given, dim, event_dim, info.data);
    const Grouped data(x, batch, dim, event_dim, is_double, keep);
    params.emplace(given, batch, dim, event_dim, is_double, keep);
    TORCH_CHECK_VALUE(params->group > 0 && params->group % info.slots == 0, "parameters of shape ", given.sizes(),
                      ": expected a multiple of ", info.slots, " in dimension ", dim);
    args.rows = params->layout.rows;
    args.outer = params->outer;
    args.inner = params->inner;
    args.components = params->group / info.slots;
    args.is_double = is_double;
    std::copy(numbers.begin(), numbers.end(), args.number);
    args.x = data.stream;
    args.params = params->stream;
  }
};

/// Whether what is written has the place of the gradient: the shape of the result.
bool stays_as_written(const Tensor& input, const Layout& layout, bool is_double) {
  return can_be_written(input) && input.sizes() == at::IntArrayRef(layout.shape) && input.scalar_type() == compute_type(is_double);
}

struct GroupOp {
  struct State {
    std::string term;
    std::vector<double> numbers;
    int64_t dim, event_dim;
    Mask mask;
    Written written;
  };

  static Tensor forward(bool plain, TensorList t, const State& s) {
    return VF_CALL(plain, group, t[0], t[1], s.term, s.numbers, s.dim, s.event_dim);
  }
  static Tensor forward_with_grad(TensorList t, State& s) {
    GroupProblem p(t[0], t[1], s.term, s.numbers, s.dim, s.event_dim);
    Tensor out = at::empty(p.batch, t[1].options().dtype(compute_type(p.is_double)));
    p.args.value = out.data_ptr();
    if (s.mask[1] && stays_as_written(t[1], p.params->layout, p.is_double)) {
      s.written.add(gradient_buffer(t[1], p.params->layout, p.is_double));
      p.args.grad = dense_stream(s.written.grads[0], p.params->layout.columns);
    }
    launch(t[1], p.args);
    return out;
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList t, const State& s) {
    return VF_CALL(plain, group_backward, grad, t[0], t[1], s.term, s.numbers, s.dim, s.event_dim, s.mask);
  }
  static Tensors finish(Tensors grads, TensorList, const State&) { return grads; }
};

// --- softmaxes over classes ------------------------------------------------------------------------------------------

/// x is the indices, the counts, or of CSR data the counts that are not zero, with `row_begin` and `column`.
struct SoftmaxProblem {
  bool is_double;
  at::DimVector batch;
  std::vector<Tensor> keep;
  SoftmaxArgs args;
  std::optional<Grouped> logits, x;

  SoftmaxProblem(const Tensor& given_x, const OptionalTensor& row_begin, const OptionalTensor& column, const Tensor& given, int64_t dim,
                 int64_t event_dim) {
    const bool counts = given_x.is_floating_point();
    is_double = given.scalar_type() == at::kDouble || (counts && given_x.scalar_type() == at::kDouble);
    args.target = column ? Target::kSparse : counts ? Target::kDense : Target::kIndex;
    args.is_double = is_double;
    if (args.target == Target::kSparse) {
      TORCH_CHECK_VALUE(row_begin && given.dim() == 2 && event_dim == 1 && row_begin->numel() == given.size(0) + 1, "CSR data of ",
                        row_begin ? row_begin->numel() - 1 : 0, " rows, logits of shape ", given.sizes(), ": expected as many rows");
      batch = at::DimVector(given.sizes().slice(0, 1));
    } else {
      batch = common_batch(given_x, given, dim, event_dim, args.target == Target::kIndex ? 1 : given.size(dim));
    }
    logits.emplace(given, batch, dim, event_dim, is_double, keep);
    args.rows = logits->layout.rows;
    args.outer = logits->outer;
    args.inner = logits->inner;
    args.k = logits->group;
    args.logits = logits->stream;
    TORCH_CHECK_VALUE(args.k > 0 && args.k < (int64_t{1} << 31), "logits of shape ", given.sizes(), ": expected 1 to 2^31 - 1 classes");
    if (args.target == Target::kSparse) {
      // of integers, CUDA's kernels read bytes alone
      const Tensor values = given_x.is_cuda() && !counts ? given_x.to(compute_type(is_double)) : given_x;
      args.sparse = sparse_rows(values, *row_begin, *column, args.rows, args.k, keep);
    } else if (args.target == Target::kDense) {
      TORCH_CHECK_VALUE(event_dim == 1, "event_dim=", event_dim, ": expected 1 with counts");
      x.emplace(given_x, batch, dim, event_dim, is_double, keep);
      args.x = x->stream;
    } else {
      at::DimVector shape(batch);
      for (const int64_t size : given_x.sizes().slice(static_cast<size_t>(given_x.dim() - event_dim))) shape.push_back(size);
      args.index = held(given_x.to(at::kLong).expand(shape));
      check_indices(given_x);
    }
  }

 private:
  const Tensor& kept(const Tensor& t) {
    keep.push_back(t);
    return keep.back();
  }
  const int64_t* held(const Tensor& t) { return kept(t.contiguous()).const_data_ptr<int64_t>(); }

  /// Indices are looked at on the CPU, where nothing waits for it: one outside of the classes would be read from somebody else's memory.
  void check_indices(const Tensor& given) const {
    if (!given.is_cpu() || given.numel() == 0) return;
    const auto [least, most] = at::aminmax(given);
    const int64_t low = least.to(at::kLong).item<int64_t>(), high = most.to(at::kLong).item<int64_t>();
    TORCH_CHECK_VALUE(low >= 0 && high < args.k, "x holds ", low < 0 ? low : high, ": expected class indices from 0 to ", args.k - 1);
  }
};

struct SoftmaxOp {
  struct State {
    bool sparse;
    int64_t dim, event_dim;
    Mask mask;
    Written written;
    OptionalTensor row_begin(TensorList t) const { return sparse ? OptionalTensor(t[2]) : std::nullopt; }
    OptionalTensor column(TensorList t) const { return sparse ? OptionalTensor(t[3]) : std::nullopt; }
  };
  static Tensor forward(bool plain, TensorList t, const State& s) {
    return VF_CALL(plain, softmax, t[0], t[1], s.row_begin(t), s.column(t), s.dim, s.event_dim);
  }
  static Tensor forward_with_grad(TensorList t, State& s) {
    SoftmaxProblem p(t[0], s.row_begin(t), s.column(t), t[1], s.dim, s.event_dim);
    Tensor out = at::empty(p.batch, t[1].options().dtype(compute_type(p.is_double)));
    p.args.value = out.data_ptr();
    if (s.mask[1] && !s.mask[0] && stays_as_written(t[1], p.logits->layout, p.is_double)) {
      s.written.add(gradient_buffer(t[1], p.logits->layout, p.is_double));
      p.args.grad = dense_stream(s.written.grads[0], p.logits->layout.columns);
    }
    launch_softmax(t[1], p.args);
    return out;
  }
  static Tensors backward(bool plain, const Tensor& grad, TensorList t, const State& s) {
    return VF_CALL(plain, softmax_backward, grad, t[0], t[1], s.row_begin(t), s.column(t), s.dim, s.event_dim, s.mask);
  }
  static Tensors finish(Tensors grads, TensorList, const State&) { return grads; }
};

Tensors inputs_of(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column) {
  return column ? Tensors{x, logits, *row_begin, *column} : Tensors{x, logits};
}

}  // namespace

void launch_softmax(const Tensor& like, const SoftmaxArgs& args) {
#if defined(VF_WITH_CUDA)
  if (like.is_cuda()) {
    const Tensor scratch = at::empty({cuda::softmax_scratch(args)}, like.options().dtype(compute_type(args.is_double)));
    SoftmaxArgs with_scratch = args;
    with_scratch.scratch = scratch.data_ptr();
    VF_LAUNCH(like, softmax_terms, with_scratch);
    return;
  }
#endif
  VF_LAUNCH(like, softmax_terms, args);
}

Tensor group_kernel(const Tensor& x, const Tensor& params, string_view term, Numbers numbers, int64_t dim, int64_t event_dim) {
  GroupProblem p(x, params, term, numbers, dim, event_dim);
  Tensor out = at::empty(p.batch, params.options().dtype(compute_type(p.is_double)));
  p.args.value = out.data_ptr();
  launch(params, p.args);
  return out;
}

Tensors group_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& params, string_view term, Numbers numbers, int64_t dim,
                              int64_t event_dim, const Mask& mask) {
  TORCH_CHECK_VALUE(!mask[0], "x: expected data without a gradient, which lie on a grid of levels");
  if (!mask[1]) return {};
  GroupProblem p(x, params, term, numbers, dim, event_dim);
  p.args.row_grad = row_grad(grad, p.batch, p.is_double, p.keep);
  Tensor out = gradient_buffer(params, p.params->layout, p.is_double);
  p.args.grad = dense_stream(out, p.params->layout.columns);
  launch(params, p.args);
  return {to_input(out, params)};
}

Tensor group_autograd(const Tensor& x, const Tensor& params, string_view term, Numbers numbers, int64_t dim, int64_t event_dim) {
  const Tensors inputs{x, params};
  TORCH_CHECK_VALUE(!x.requires_grad(), "x requires grad: expected data without one, which lie on a grid of levels");
  return WrittenFunction<GroupOp>::apply(TensorList(inputs),
                                         GroupOp::State{std::string(term), numbers.vec(), dim, event_dim, requires_grad_mask(inputs), {}});
}

Tensor group(const Tensor& x, const Tensor& params, const std::string& term, Numbers numbers, int64_t dim, int64_t event_dim) {
  const Tensors inputs{x, params};
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::group", std::vector<c10::IValue>());
    return group_autograd(x, params, term, numbers, dim, event_dim);
  }
  return VF_CALL(plain, group, x, params, term, numbers, dim, event_dim);
}

Tensor softmax_kernel(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column, int64_t dim,
                      int64_t event_dim) {
  SoftmaxProblem p(x, row_begin, column, logits, dim, event_dim);
  Tensor out = at::empty(p.batch, logits.options().dtype(compute_type(p.is_double)));
  p.args.value = out.data_ptr();
  launch_softmax(logits, p.args);
  return out;
}

Tensors softmax_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin,
                                const OptionalTensor& column, int64_t dim, int64_t event_dim, const Mask& mask) {
  SoftmaxProblem p(x, row_begin, column, logits, dim, event_dim);
  p.args.row_grad = row_grad(grad, p.batch, p.is_double, p.keep);
  Tensors grads;
  if (mask[0]) {
    TORCH_CHECK_VALUE(p.x, "x requires grad: expected dense counts for that");
    grads.push_back(gradient_buffer(x, p.x->layout, p.is_double));
    p.args.grad_x = dense_stream(grads.back(), p.x->layout.columns);
  }
  if (mask[1]) {
    grads.push_back(gradient_buffer(logits, p.logits->layout, p.is_double));
    p.args.grad = dense_stream(grads.back(), p.logits->layout.columns);
  }
  launch_softmax(logits, p.args);
  for (size_t i = 0, next = 0; i < 2; ++i) {
    if (mask[i]) grads[next] = to_input(grads[next], i == 0 ? x : logits), ++next;
  }
  return grads;
}

Tensor softmax_autograd(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column, int64_t dim,
                        int64_t event_dim) {
  const Tensors inputs = inputs_of(x, logits, row_begin, column);
  return WrittenFunction<SoftmaxOp>::apply(TensorList(inputs),
                                           SoftmaxOp::State{column.has_value(), dim, event_dim, requires_grad_mask(inputs), {}});
}

Tensor softmax(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column, int64_t dim,
               int64_t event_dim) {
  const Tensors inputs = inputs_of(x, logits, row_begin, column);
  const bool plain = is_plain(inputs);
  if (plain && wants_grad(inputs)) {
    RECORD_FUNCTION("vae_fast::softmax", std::vector<c10::IValue>());
    return softmax_autograd(x, logits, row_begin, column, dim, event_dim);
  }
  return VF_CALL(plain, softmax, x, logits, row_begin, column, dim, event_dim);
}

}  // namespace ops
}  // namespace vae_fast
