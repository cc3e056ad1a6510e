#include "layout.h"

#include "csr.h"
#include "../cpu/parallel.h"

#include <ATen/ExpandUtils.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <numeric>

namespace vae_fast {
namespace ops {

bool any_double(TensorList tensors) {
  return std::any_of(tensors.begin(), tensors.end(), [](const Tensor& t) { return t.scalar_type() == at::kDouble; });
}

at::ScalarType compute_type(bool is_double) { return is_double ? at::kDouble : at::kFloat; }

DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::kFloat;
    case at::kDouble:
      return DType::kDouble;
    case at::kHalf:
      return DType::kHalf;
    case at::kBFloat16:
      return DType::kBFloat16;
    case at::kByte:
      return DType::kUInt8;
    case at::kBool:
      return DType::kBool;
    default:
      TORCH_CHECK_TYPE(false, "dtype ", t.scalar_type(), ": expected float16, bfloat16, float32, float64, uint8 or bool");
  }
}

DType count_dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kByte:
      return DType::kByte;
    case at::kShort:
      return DType::kInt16;
    case at::kInt:
      return DType::kInt32;
    case at::kLong:
      return DType::kInt64;
    case at::kBool:
      TORCH_CHECK_TYPE(false, "dtype Bool: expected counts of uint8, int16, int32, int64 or a floating dtype");
    default:
      return dtype_of(t);
  }
}

at::DimVector common_shape(TensorList tensors) {
  const Tensor& first = tensors[0];
  TORCH_CHECK_VALUE(first.is_cpu() || first.is_cuda(), "device ", first.device(), ": expected cpu or cuda");
  at::DimVector shape(first.sizes());
  for (const Tensor& t : tensors) {
    TORCH_CHECK_VALUE(t.device() == first.device(), "tensors on ", t.device(), " and ", first.device(), ": expected one device");
    if (t.sizes() != at::IntArrayRef(shape)) shape = at::infer_size_dimvector(shape, t.sizes());
  }
  return shape;
}

Layout::Layout(at::IntArrayRef full, int64_t events, const Tensor& primary, bool logical) : shape(full), event_dim(events) {
  const int64_t dims = static_cast<int64_t>(full.size());
  TORCH_CHECK_VALUE(events >= 0 && events <= dims, "event_dim=", events, ": expected 0 to ", dims);
  for (int64_t d = 0; d < dims - events; ++d) rows *= full[d];
  for (int64_t d = dims - events; d < dims; ++d) {
    columns *= full[d];
    order.push_back(d);
  }
  if (logical || events < 2 || primary.sizes() != full || primary.is_contiguous()) return;
  const auto strides = primary.strides();
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return strides[a] > strides[b]; });
  ordered = std::is_sorted(order.begin(), order.end());
}

namespace {
/// Asks for huge pages under a large fresh buffer on the CPU: the kernel then hands it out in 2 MB steps, not 4 KB ones, which costs more
/// than filling it.
Tensor on_huge_pages(Tensor t) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = uintptr_t{2} << 20;
  if (t.is_cpu() && t.nbytes() >= 4 * page) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(t.data_ptr()), end = begin + t.nbytes();
    const uintptr_t first = (begin + page - 1) / page * page, last = end / page * page;
    (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);  // advice: nothing depends on it
  }
#endif
  return t;
}
}  // namespace

Tensor Layout::empty(const at::TensorOptions& options) const {
  if (ordered) return on_huge_pages(at::empty(shape, options));
  std::vector<int64_t> strides(shape.size(), 0);
  int64_t run = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[static_cast<size_t>(order[i])] = run;
    run *= shape[static_cast<size_t>(order[i])];
  }
  for (size_t d = shape.size() - order.size(); d-- > 0;) {
    strides[d] = run;
    run *= shape[d];
  }
  return on_huge_pages(at::empty_strided(shape, strides, options));
}

namespace {

/// Fills in where rows of `t` (of full shape) lie; false if it cannot be said without a copy.
bool describe(const Tensor& t, const Layout& layout, Stream& s) {
  const auto sizes = t.sizes(), strides = t.strides();
  int64_t expected = 1;
  bool dense = true, constant = true;
  for (size_t i = layout.order.size(); i-- > 0;) {
    const int64_t d = layout.order[i];
    if (sizes[d] == 1) continue;
    dense = dense && strides[d] == expected;
    constant = constant && strides[d] == 0;
    expected *= sizes[d];
  }
  if (!dense && !constant) return false;
  s.inner_stride = dense ? 1 : 0;
  RowIndex row;
  row.dims = 0;  // filled innermost first, then reversed
  for (int64_t d = static_cast<int64_t>(sizes.size()) - layout.event_dim - 1; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (row.dims > 0 && strides[d] == row.stride[row.dims - 1] * row.size[row.dims - 1]) {
      row.size[row.dims - 1] *= sizes[d];
      continue;
    }
    if (row.dims == kMaxBatchDims) return false;
    row.size[row.dims] = sizes[d];
    row.stride[row.dims++] = strides[d];
  }
  if (row.dims == 0) {
    row.dims = 1;
    row.stride[0] = layout.columns;
  }
  std::reverse(row.size, row.size + row.dims);
  std::reverse(row.stride, row.stride + row.dims);
  s.row = row;
  return true;
}

}  // namespace

namespace {

Stream dense_stream_of(const Tensor& t, int64_t columns, DType dtype) {
  Stream s;
  s.data = t.data_ptr();
  s.dtype = dtype;
  s.row.stride[0] = columns;
  return s;
}

Stream stream_as(const Tensor& input, DType (&name)(const Tensor&), const Layout& layout, bool is_double, std::vector<Tensor>& keep) {
  // In double, other floats are converted: a mixture the kernels need not know.
  const bool convert = is_double && input.is_floating_point() && input.scalar_type() != at::kDouble;
  const bool full = input.sizes() == at::IntArrayRef(layout.shape);
  if (full && layout.ordered && !convert && input.is_contiguous()) return dense_stream_of(input, layout.columns, name(input));

  Tensor t = convert ? input.to(at::kDouble) : input;
  if (!full) t = t.expand(layout.shape);
  Stream s;
  if (!describe(t, layout, s)) {
    // of what is the same in all rows one copy
    Layout once = layout;
    Tensor source = t;
    for (int64_t d = 0; d < t.dim() - layout.event_dim; ++d) {
      if (t.stride(d) != 0 || t.size(d) < 2) continue;
      once.shape[static_cast<size_t>(d)] = 1;
      source = source.narrow(d, 0, 1);
    }
    Tensor copy = once.empty(t.options()).copy_(source).expand(layout.shape);
    if (!describe(copy, layout, s)) {  // it repeats in more ways than a stream has dimensions
      copy = layout.empty(t.options()).copy_(t);
      TORCH_INTERNAL_ASSERT(describe(copy, layout, s) || copy.numel() == 0);  // strides of nothing describe nothing
    }
    t = copy;
  }
  s.data = t.data_ptr();
  s.dtype = name(t);
  if (convert || !t.is_alias_of(input)) keep.push_back(t);
  return s;
}

}  // namespace

Stream dense_stream(const Tensor& t, int64_t columns) { return dense_stream_of(t, columns, dtype_of(t)); }

Stream stream_of(const Tensor& input, const Layout& layout, bool is_double, std::vector<Tensor>& keep) {
  return stream_as(input, dtype_of, layout, is_double, keep);
}

namespace {
Stream sparse_stream(const Tensor& counts, const Layout& layout, std::vector<Tensor>& keep, std::shared_ptr<SparseRows>& sparse) {
  TORCH_CHECK_VALUE(counts.is_cpu(), "x is sparse and on ", counts.device(), ": expected a dense one there, x.to_dense()");
  TORCH_CHECK_VALUE(layout.event_dim == 1 && counts.sizes() == at::IntArrayRef(layout.shape), "x is sparse and of shape ", counts.sizes(),
                    " (event_dim=", layout.event_dim, "), the parameters' is ", layout.shape,
                    ": expected rows of one event, none of them broadcast");
  sparse = std::make_shared<SparseRows>(
      sparse_rows(counts.values(), counts.crow_indices(), counts.col_indices(), layout.rows, layout.columns, keep));
  Stream s;
  s.data = sparse.get();
  s.dtype = kSparseRows;
  s.row.stride[0] = 1;
  return s;
}
}  // namespace

Stream count_stream(const Tensor& counts, const Layout& layout, bool is_double, std::vector<Tensor>& keep,
                    std::shared_ptr<SparseRows>& sparse) {
  if (counts.layout() == at::kSparseCsr) return sparse_stream(counts, layout, keep, sparse);
  const auto type = counts.scalar_type();
  if (!counts.is_cuda() || (type != at::kShort && type != at::kInt && type != at::kLong)) {
    return stream_as(counts, count_dtype_of, layout, is_double, keep);
  }
  keep.push_back(counts.to(compute_type(is_double)));  // of integers, the kernels there read bytes alone
  return stream_as(Tensor(keep.back()), dtype_of, layout, is_double, keep);
}

Term prepare_term(TensorList inputs, int32_t term, const Layout& layout, bool is_double, at::ArrayRef<double> params) {
  check_term(term, inputs.size(), params.size());
  Term t;
  t.args.term = term;
  t.args.is_double = is_double;
  t.args.columns = layout.columns;
  std::copy(params.begin(), params.end(), t.args.param);
  for (size_t k = 0; k < inputs.size(); ++k) {
    const bool counts = k == 0 && is_of_counts(term);
    t.args.in[k] = counts ? count_stream(inputs[k], layout, is_double, t.keep, t.sparse) : stream_of(inputs[k], layout, is_double, t.keep);
  }
  return t;
}

Bound bound_of(c10::string_view name, const Tensor& like) {
  const Bound bound = bound_of(name);
  TORCH_CHECK_VALUE(bound.mode == BoundMode::kNone || like.is_cpu(), "term='", name, "' on ", like.device(),
                    ": expected no bounds there, but a scale that is bounded");
  return bound;
}

const double* number_at(const std::optional<Tensor>& number, const Tensor& like) {
  if (!number) return nullptr;
  TORCH_CHECK_VALUE(number->scalar_type() == at::kDouble && number->numel() == 1 && number->device() == like.device(),
                    "a number on the device: expected one float64 element on ", like.device(), ", got ", number->numel(), " of ",
                    number->scalar_type(), " on ", number->device());
  return number->const_data_ptr<double>();
}

Tensor gradient_buffer(const Tensor& input, const Layout& layout, bool is_double) {
  // A broadcast input's gradient is summed afterwards, so it is kept in the compute type until then.
  const bool full = input.sizes() == at::IntArrayRef(layout.shape);
  const bool same = full && (input.scalar_type() == at::kDouble) == is_double;
  return layout.empty(same ? input.options() : input.options().dtype(compute_type(is_double)));
}

namespace {
/// Whether the kernels can sum the gradient of an input over rows: those of the CPU, of an input that all rows share.
bool is_summed(const Tensor& input, const Layout& layout, int64_t columns) {
  const size_t batch = layout.batch().size(), added = layout.shape.size() - static_cast<size_t>(input.dim());
  for (size_t d = added; d < batch; ++d) {
    if (input.sizes()[d - added] != 1) return false;
  }
  return input.is_cpu() && layout.rows > 1 && layout.columns > 0 && columns > 1 && columns < cpu::kLongRow;
}
}  // namespace

Tensor Term::add_gradient(int k, const Tensor& input, const Layout& layout, int64_t columns) {
  TORCH_CHECK_VALUE(k > 0 || !is_of_counts(args.term), "x requires a gradient: counts have none, expected x.detach()");
  if (is_summed(input, layout, columns)) {
    const int64_t rows = cpu::RowBlocks(layout.rows, columns).rows_of_sum();
    const bool one = input.numel() == 1;
    Layout sums = layout;
    for (size_t d = 0; d < layout.batch().size(); ++d) sums.shape[d] = d == 0 ? cpu::ceil_div(layout.rows, rows) : 1;
    for (size_t d = layout.batch().size(); one && d < sums.shape.size(); ++d) sums.shape[d] = 1;
    Tensor grad = sums.empty(input.options().dtype(at::kDouble));
    Stream& s = args.grad[k] = dense_stream(grad, one ? 1 : layout.columns);
    s.summed = true;
    s.inner_stride = one ? 0 : 1;
    s.row.dims = 2;
    s.row.size[0] = sums.shape[0];
    s.row.stride[0] = one ? 1 : layout.columns;
    s.row.size[1] = rows;
    s.row.stride[1] = 0;
    return grad;
  }
  Tensor grad = gradient_buffer(input, layout, args.is_double);
  args.grad[k] = dense_stream(grad, layout.columns);
  return grad;
}

RowGrad row_grad(const Tensor& grad, at::IntArrayRef batch, bool is_double, std::vector<Tensor>& keep) {
  RowGrad g;
  Tensor t = grad.to(compute_type(is_double)).expand(batch);
  const auto strides = t.strides();
  if (t.is_contiguous()) {
    g.stride = 1;
  } else if (std::all_of(strides.begin(), strides.end(), [](int64_t s) { return s == 0; })) {
    g.stride = 0;
  } else {
    t = t.contiguous();
  }
  g.data = t.const_data_ptr();
  keep.push_back(t);
  return g;
}

namespace {
/// One run of neighbouring dimensions summed: (outer, k, inner) to (outer, inner).
Tensor sum_run(const Tensor& dense, int64_t outer, int64_t k, int64_t inner, at::ScalarType result, double scale) {
  Tensor out = at::empty({outer, inner}, dense.options().dtype(result));
  SumArgs a;
  a.outer = outer;
  a.k = k;
  a.inner = inner;
  a.is_double = dense.scalar_type() == at::kDouble;
  a.a = dense.const_data_ptr();
  a.out_is_double = result == at::kDouble;
  a.out = out.data_ptr();
  a.scale = scale;
  cpu::sum(a);
  return out;
}
bool can_sum(const Tensor& t) { return t.is_cpu() && (t.scalar_type() == at::kFloat || t.scalar_type() == at::kDouble); }
}  // namespace

Tensor ordered_sum_to(const Tensor& t, at::IntArrayRef sizes) {
  if (!can_sum(t)) return at::sum_to(t, sizes);
  const auto full = t.sizes();
  const size_t added = full.size() - sizes.size();
  const auto summed = [&](size_t d) { return d < added || sizes[d - added] != full[d]; };
  Tensor left = t.contiguous();
  // The innermost run first, so that the dimensions before it are still those of `full`; what is left of a run is 1.
  int64_t inner = 1;
  for (size_t d = full.size(); d > 0;) {
    if (!summed(d - 1)) {
      inner *= full[--d];
      continue;
    }
    int64_t k = 1;
    for (; d > 0 && summed(d - 1); --d) k *= full[d - 1];
    const int64_t outer = c10::multiply_integers(full.slice(0, d));
    left = sum_run(left, outer, k, inner, at::kDouble, 1.0);
  }
  return left.to(t.scalar_type()).view(sizes);
}

Tensor total(const Tensor& t, bool mean) {
  if (!can_sum(t)) return (mean ? t.mean(at::kDouble) : t.sum(at::kDouble)).to(t.scalar_type());  // of float32 the sum may be out of range
  const double scale = mean ? 1.0 / static_cast<double>(t.numel()) : 1.0;                         // the mean of nothing is NaN: 0 * inf
  return sum_run(t.contiguous(), 1, t.numel(), 1, t.scalar_type(), scale).view(at::IntArrayRef());
}

Tensor to_input(Tensor grad, const Tensor& input) {
  if (grad.sizes() != input.sizes()) grad = ordered_sum_to(grad, input.sizes());
  return grad.scalar_type() == input.scalar_type() ? grad : grad.to(input.scalar_type());
}

}  // namespace ops
}  // namespace vae_fast
