// The Python module and the dispatcher's ops. Schemas are what torch.compile, export and opcheck see.
#include <pybind11/functional.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include "cpu/table.h"
#include "ops/ops.h"
#include "ops/ordinary_head.h"
#include "ops/product_choice.h"

namespace ops = vae_fast::ops;

/// A term's parameters, from a list: torch's own casters have one for integers alone.
template <>
struct pybind11::detail::type_caster<ops::Numbers> {
  PYBIND11_TYPE_CASTER(ops::Numbers, const_name("list[float]"));

  bool load(handle from, bool) {
    if (!PyList_Check(from.ptr())) return false;
    const Py_ssize_t count = PyList_GET_SIZE(from.ptr());
    for (Py_ssize_t i = 0; i < count; ++i) {
      const double number = PyFloat_AsDouble(PyList_GET_ITEM(from.ptr(), i));
      if (number == -1.0 && PyErr_Occurred() != nullptr) return PyErr_Clear(), false;
      numbers_.push_back(number);
    }
    value = numbers_;
    return true;
  }

 private:
  c10::SmallVector<double, 8> numbers_;
};

TORCH_LIBRARY(vae_fast, m) {
  m.def("term(Tensor[] inputs, str term, float[] params, Tensor? param_at, int event_dim) -> Tensor");
  m.def(
      "term_backward(Tensor grad, Tensor[] inputs, str term, float[] params, Tensor? param_at, int event_dim, bool[] mask) -> "
      "Tensor[]");
#define VF_ELBO_SCHEMA                                                                                                                  \
  "Tensor[] likelihood_inputs, Tensor[] kl_inputs, str likelihood, float[] params, str kl, float floor, Tensor? floor_at, float beta, " \
  "Tensor? "                                                                                                                            \
  "beta_at, int event_dim, int latent_dim"
  m.def("elbo(" VF_ELBO_SCHEMA ") -> Tensor");
  m.def("elbo_backward(Tensor grad, " VF_ELBO_SCHEMA ", bool[] mask) -> Tensor[]");
  m.def("elbo_loss(" VF_ELBO_SCHEMA ", bool mean) -> Tensor");
  m.def("elbo_loss_with_grad(" VF_ELBO_SCHEMA ", bool mean, bool[] mask) -> (Tensor, Tensor[])");
  m.def("elbo_parts(" VF_ELBO_SCHEMA ") -> (Tensor, Tensor, Tensor)");
  m.def("elbo_loss_parts(" VF_ELBO_SCHEMA ", bool mean) -> (Tensor, Tensor, Tensor)");
  m.def("elbo_loss_parts_with_grad(" VF_ELBO_SCHEMA ", bool mean, bool[] mask) -> (Tensor, Tensor, Tensor, Tensor[])");
#undef VF_ELBO_SCHEMA
  m.def("linear_likelihood(Tensor x, Tensor h, Tensor weight, Tensor? bias, str term, float[] params) -> Tensor");
  m.def(
      "linear_likelihood_backward(Tensor grad, Tensor x, Tensor h, Tensor weight, Tensor? bias, str term, float[] params, bool[] mask) -> "
      "Tensor[]");
  m.def("linear_likelihood_sum(Tensor x, Tensor h, Tensor weight, Tensor? bias, str term, float[] params, bool mean) -> Tensor");
  m.def(
      "linear_likelihood_sum_with_grad(Tensor x, Tensor h, Tensor weight, Tensor? bias, str term, float[] params, bool mean, bool[] mask) "
      "-> "
      "(Tensor, Tensor[])");
  // Conservative: TorchScript would take two draws for one common subexpression, and give two samples the same noise.
  m.def(torch::schema("draw_seed(Tensor like, Generator? generator=None) -> Tensor", c10::AliasAnalysisKind::CONSERVATIVE),
        {at::Tag::nondeterministic_seeded});
  m.def("reparameterize(Tensor[] inputs, Tensor? noise, Tensor? rng_state, str scale, int num_samples) -> Tensor");
  m.def(
      "reparameterize_with_kl(Tensor[] inputs, Tensor? noise, Tensor? rng_state, str kl, int num_samples, float floor, int event_dim) -> "
      "(Tensor, Tensor)");
  m.def(
      "reparameterize_backward(Tensor? grad_z, Tensor? grad_kl, Tensor[] inputs, Tensor? noise, Tensor? rng_state, str term, int "
      "num_samples, float floor, int event_dim, bool[] mask) -> Tensor[]");
  m.def("logsumexp(Tensor a, Tensor? weights, int dim) -> Tensor");
  m.def("logsumexp_backward(Tensor grad, Tensor a, Tensor? weights, Tensor out, int dim, bool[] mask) -> Tensor[]");
  m.def("mixture(Tensor x, Tensor weight_logits, Tensor means, Tensor scale, str covariance, str precision='float32') -> (Tensor, Tensor)");
  m.def(
      "mixture_backward(Tensor grad, Tensor x, Tensor weight_logits, Tensor means, Tensor scale, Tensor normaliser, str covariance, str "
      "precision, bool[] mask) -> Tensor[]");
  m.def(
      "mixture_responsibilities(Tensor x, Tensor weight_logits, Tensor means, Tensor scale, str covariance, str precision='float32') -> "
      "Tensor");
  m.def(
      "mixture_responsibilities_backward(Tensor grad, Tensor x, Tensor weight_logits, Tensor means, Tensor scale, Tensor responsibilities, "
      "str covariance, str precision, bool[] mask) -> Tensor[]");
  m.def(
      "mixture_statistics(Tensor x, Tensor weight_logits, Tensor means, Tensor scale, Tensor? responsibilities, Tensor? sample_weight, str "
      "covariance, str precision='float32') -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("mixture_factorized(Tensor x, Tensor weight_logits, Tensor means, Tensor scale, str covariance) -> (Tensor, Tensor, Tensor)");
  m.def(
      "mixture_factorized_backward(Tensor? grad_joint, Tensor? grad_factorized, Tensor x, Tensor weight_logits, Tensor means, Tensor "
      "scale, "
      "Tensor normaliser, str covariance, bool[] mask) -> Tensor[]");
  m.def("mdn(Tensor y, Tensor weight_logits, Tensor means, Tensor log_scale, float floor) -> Tensor");
  m.def(
      "mdn_backward(Tensor grad, Tensor y, Tensor weight_logits, Tensor means, Tensor log_scale, Tensor log_prob, float floor, bool[] "
      "mask) -> Tensor[]");
  m.def("group(Tensor x, Tensor params, str term, float[] numbers, int dim, int event_dim) -> Tensor");
  m.def("group_backward(Tensor grad, Tensor x, Tensor params, str term, float[] numbers, int dim, int event_dim, bool[] mask) -> Tensor[]");
  m.def("softmax(Tensor x, Tensor logits, Tensor? row_begin, Tensor? column, int dim, int event_dim) -> Tensor");
  m.def(
      "softmax_backward(Tensor grad, Tensor x, Tensor logits, Tensor? row_begin, Tensor? column, int dim, int event_dim, bool[] mask) -> "
      "Tensor[]");
}

namespace {
void register_kernels(torch::Library& m) {
  m.impl("term", &ops::term_kernel);
  m.impl("term_backward", &ops::term_backward_kernel);
  m.impl("elbo", &ops::elbo_kernel);
  m.impl("elbo_backward", &ops::elbo_backward_kernel);
  m.impl("elbo_loss", &ops::elbo_loss_kernel);
  m.impl("elbo_loss_with_grad", &ops::elbo_loss_with_grad_kernel);
  m.impl("elbo_parts", &ops::elbo_parts_kernel);
  m.impl("elbo_loss_parts", &ops::elbo_loss_parts_kernel);
  m.impl("elbo_loss_parts_with_grad", &ops::elbo_loss_parts_with_grad_kernel);
  m.impl("linear_likelihood", &ops::linear_likelihood_kernel);
  m.impl("linear_likelihood_backward", &ops::linear_likelihood_backward_kernel);
  m.impl("linear_likelihood_sum", &ops::linear_likelihood_sum_kernel);
  m.impl("linear_likelihood_sum_with_grad", &ops::linear_likelihood_sum_with_grad_kernel);
  m.impl("draw_seed", &ops::draw_seed_kernel);
  m.impl("reparameterize", &ops::reparameterize_kernel);
  m.impl("reparameterize_with_kl", &ops::reparameterize_with_kl_kernel);
  m.impl("reparameterize_backward", &ops::reparameterize_backward_kernel);
  m.impl("logsumexp", &ops::logsumexp_kernel);
  m.impl("logsumexp_backward", &ops::logsumexp_backward_kernel);
  m.impl("mixture", &ops::mixture_kernel);
  m.impl("mixture_backward", &ops::mixture_backward_kernel);
  m.impl("mixture_responsibilities", &ops::mixture_responsibilities_kernel);
  m.impl("mixture_responsibilities_backward", &ops::mixture_responsibilities_backward_kernel);
  m.impl("mixture_statistics", &ops::mixture_statistics_kernel);
  m.impl("mixture_factorized", &ops::mixture_factorized_kernel);
  m.impl("mixture_factorized_backward", &ops::mixture_factorized_backward_kernel);
  m.impl("mdn", &ops::mdn_kernel);
  m.impl("mdn_backward", &ops::mdn_backward_kernel);
  m.impl("group", &ops::group_kernel);
  m.impl("group_backward", &ops::group_backward_kernel);
  m.impl("softmax", &ops::softmax_kernel);
  m.impl("softmax_backward", &ops::softmax_backward_kernel);
}
}  // namespace

TORCH_LIBRARY_IMPL(vae_fast, CPU, m) { register_kernels(m); }
TORCH_LIBRARY_IMPL(vae_fast, SparseCsrCPU, m) { register_kernels(m); }  // of counts; all else refuses it before it comes here
#if defined(VF_WITH_CUDA)
TORCH_LIBRARY_IMPL(vae_fast, CUDA, m) { register_kernels(m); }
#endif

// The derivatives of the backward ops themselves are registered in vae_fast/_library.py, through the plain-torch formula.
TORCH_LIBRARY_IMPL(vae_fast, Autograd, m) {
  m.impl("term", &ops::term_autograd);
  m.impl("elbo", &ops::elbo_autograd);
  m.impl("elbo_loss", &ops::elbo_loss_autograd);
  m.impl("elbo_parts", &ops::elbo_parts_autograd);
  m.impl("elbo_loss_parts", &ops::elbo_loss_parts_autograd);
  m.impl("linear_likelihood", &ops::linear_likelihood_autograd);
  m.impl("linear_likelihood_sum", &ops::linear_likelihood_sum_autograd);
  m.impl("reparameterize", &ops::reparameterize_autograd);
  m.impl("reparameterize_with_kl", &ops::reparameterize_with_kl_autograd);
  m.impl("logsumexp", &ops::logsumexp_autograd);
  m.impl("mixture", &ops::mixture_autograd);
  m.impl("mixture_responsibilities", &ops::mixture_responsibilities_autograd);
  m.impl("mixture_factorized", &ops::mixture_factorized_autograd);
  m.impl("mdn", &ops::mdn_autograd);
  m.impl("group", &ops::group_autograd);
  m.impl("softmax", &ops::softmax_autograd);
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  const auto release = py::call_guard<py::gil_scoped_release>();
  m.def("term", &ops::term, release);
  m.def("elbo", &ops::elbo, release);
  m.def("elbo_loss", &ops::elbo_loss, release);
  m.def("elbo_parts", &ops::elbo_parts, release);
  m.def("elbo_loss_parts", &ops::elbo_loss_parts, release);
  m.def("linear_likelihood", &ops::linear_likelihood, release);
  m.def("linear_likelihood_sum", &ops::linear_likelihood_sum, release);
  m.def("linear", &ops::linear, release);
  m.def("linear_bfloat16", &ops::linear_bfloat16, release);
  py::class_<ops::ProductRun, std::shared_ptr<ops::ProductRun>>(m, "ProductRun")
      .def(py::init<const ops::ProductTable&>())
      .def("table", &ops::ProductRun::table);
  m.def("enter_product_run", &ops::enter_product_run);
  m.def("set_product_mode", &ops::set_product_mode);
  m.def("set_product_timer", &ops::set_product_timer);
  m.def("reparameterize", &ops::reparameterize, release);
  m.def("reparameterize_with_kl", &ops::reparameterize_with_kl, release);
  m.def("logsumexp", &ops::logsumexp, release);
  m.def("mixture", &ops::mixture, release);
  m.def("mixture_responsibilities", &ops::mixture_responsibilities, release);
  m.def("mixture_statistics", &ops::mixture_statistics, release);
  m.def("mixture_factorized", &ops::mixture_factorized, release);
  m.def("mdn", &ops::mdn, release);
  m.def("group", &ops::group, release);
  m.def("softmax", &ops::softmax, release);
  m.def("reduce", &ops::reduce, release);
  m.def("fma_probe", &ops::fma_probe, release);
  m.def("set_cuda_tuning", &ops::set_cuda_tuning);
  m.def("ordinary_head", &ops::ordinary_head);
  m.def("isa_in_use", [] { return std::string(vae_fast::cpu::table().isa); });
  m.def("isa_available", [] {
    std::vector<std::string> names;
    for (const char* const* n = vae_fast::cpu::isa_available(); *n != nullptr; ++n) names.emplace_back(*n);
    return names;
  });
}
