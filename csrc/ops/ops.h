// Every op in three layers: `name_kernel` allocates and runs the kernels (CPU and CUDA dispatch keys), `name_autograd` adds the backward
// pass (Autograd key), `name` is what Python calls in eager mode (pybind11): it goes straight to the others when nothing else has a say.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <tuple>
#include <vector>

namespace vae_fast {
namespace ops {

using at::Tensor;
using at::TensorList;
using c10::string_view;
using OptionalTensor = std::optional<Tensor>;
using Tensors = std::vector<Tensor>;
using Mask = c10::List<bool>;
using Numbers = at::ArrayRef<double>;  // a term's parameters

// A row-summed term with its parameters. Here and below `param_at` (of the first), `floor_at` and `beta_at`, where given, hold the number
// on the device and replace the one beside them:
// a number that changes from call to call then neither waits for the device nor makes torch.compile compile again.
//   inputs: each broadcast to (*batch, *event); result (*batch); grad (*batch); gradients: each as its input
Tensor term_kernel(TensorList inputs, string_view term, Numbers params, const OptionalTensor& param_at, int64_t event_dim);
/// Gradients of the inputs that `mask` marks, in order.
Tensors term_backward_kernel(const Tensor& grad, TensorList inputs, string_view term, Numbers params, const OptionalTensor& param_at,
                             int64_t event_dim, const Mask& mask);
Tensor term_autograd(TensorList inputs, string_view term, Numbers params, const OptionalTensor& param_at, int64_t event_dim);
Tensor term(const Tensors& inputs, const std::string& term, Numbers params, const OptionalTensor& param_at, int64_t event_dim);

// Likelihood - beta KL. What a call says beside its tensors:
#define VF_ELBO_SETTINGS                                                                                             \
  string_view likelihood, Numbers params, string_view kl, double floor, const OptionalTensor &floor_at, double beta, \
      const OptionalTensor &beta_at, int64_t event_dim, int64_t latent_dim
//   likelihood_inputs: x, then the decoder's parameters, broadcast to (*batch, *event); kl_inputs: mu, logvar and perhaps a prior's,
//   broadcast to (*batch, *latent); result (*batch), or () of a loss
Tensor elbo_kernel(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS);
Tensors elbo_backward_kernel(const Tensor& grad, TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS, const Mask& mask);
/// The loss and, in the same pass, its gradients in the inputs that `mask` marks.
std::tuple<Tensor, Tensors> elbo_loss_with_grad_kernel(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS, bool mean,
                                                       const Mask& mask);
/// The same with what they are made of beside them, before beta and without gradients: the likelihood, and the KL.
using Parts = std::tuple<Tensor, Tensor, Tensor>;
Parts elbo_parts_kernel(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS);
Parts elbo_loss_parts_kernel(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS, bool mean);
std::tuple<Tensor, Tensor, Tensor, Tensors> elbo_loss_parts_with_grad_kernel(TensorList likelihood_inputs, TensorList kl_inputs,
                                                                             VF_ELBO_SETTINGS, bool mean, const Mask& mask);
Parts elbo_parts_autograd(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS);
Parts elbo_loss_parts_autograd(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS, bool mean);
Parts elbo_parts(const Tensors& likelihood_inputs, const Tensors& kl_inputs, VF_ELBO_SETTINGS);
Parts elbo_loss_parts(const Tensors& likelihood_inputs, const Tensors& kl_inputs, VF_ELBO_SETTINGS, bool mean, bool donate);
Tensor elbo_autograd(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS);
Tensor elbo_loss_autograd(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS, bool mean);
Tensor elbo_loss_kernel(TensorList likelihood_inputs, TensorList kl_inputs, VF_ELBO_SETTINGS, bool mean);
Tensor elbo(const Tensors& likelihood_inputs, const Tensors& kl_inputs, VF_ELBO_SETTINGS);
/// With `donate`, the gradient of the likelihood's second input is written over it.
Tensor elbo_loss(const Tensors& likelihood_inputs, const Tensors& kl_inputs, VF_ELBO_SETTINGS, bool mean, bool donate);

// A decoder's last layer and its Bernoulli likelihood, by rows, or summed over them (or averaged) with the gradients of the same pass.
//   x (*batch, D), h (*batch, H), weight (D, H), bias (D,); result (*batch), or () of a sum
Tensor linear_likelihood_kernel(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                Numbers params);
Tensors linear_likelihood_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& h, const Tensor& weight,
                                          const OptionalTensor& bias, string_view term, Numbers params, const Mask& mask);
std::tuple<Tensor, Tensors> linear_likelihood_sum_with_grad_kernel(const Tensor& x, const Tensor& h, const Tensor& weight,
                                                                   const OptionalTensor& bias, string_view term, Numbers params, bool mean,
                                                                   const Mask& mask);
Tensor linear_likelihood_sum_kernel(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                    Numbers params, bool mean);
Tensor linear_likelihood_autograd(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                  Numbers params);
Tensor linear_likelihood_sum_autograd(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, string_view term,
                                      Numbers params, bool mean);
Tensor linear_likelihood(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const std::string& term,
                         Numbers params);
Tensor linear_likelihood_sum(const Tensor& x, const Tensor& h, const Tensor& weight, const OptionalTensor& bias, const std::string& term,
                             Numbers params, bool mean);

/// torch's linear layer, its products by the fastest library at hand (product.h); eager only. input (*batch, H), weight (D, H), bias (D,).
Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias);
/// The same as CPU autocast to bfloat16 has it, with copies of the float32 weight and bias that are cast already.
Tensor linear_bfloat16(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, const Tensor& weight_copy,
                       const OptionalTensor& bias_copy);

// Sampling. `inputs` are mu, scale and, with a KL against a prior, its mean and scale; `term` names the KL, or just the scale form.
// rng_state is int64 (seed, offset); it or noise is given.
//   inputs: broadcast to (*batch, *event); noise and z (num_samples, *batch, *event), or (*batch, *event) for num_samples 0; kl (*batch)
Tensor reparameterize_kernel(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state, string_view scale,
                             int64_t num_samples);
std::tuple<Tensor, Tensor> reparameterize_with_kl_kernel(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state,
                                                         string_view kl, int64_t num_samples, double floor, int64_t event_dim);
Tensors reparameterize_backward_kernel(const OptionalTensor& grad_z, const OptionalTensor& grad_kl, TensorList inputs,
                                       const OptionalTensor& noise, const OptionalTensor& rng_state, string_view term, int64_t num_samples,
                                       double floor, int64_t event_dim, const Mask& mask);
Tensor reparameterize_autograd(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state, string_view scale,
                               int64_t num_samples);
std::tuple<Tensor, Tensor> reparameterize_with_kl_autograd(TensorList inputs, const OptionalTensor& noise, const OptionalTensor& rng_state,
                                                           string_view kl, int64_t num_samples, double floor, int64_t event_dim);
Tensor reparameterize(const Tensors& inputs, const OptionalTensor& noise, const std::optional<at::Generator>& generator,
                      const std::string& scale, int64_t num_samples);
std::tuple<Tensor, Tensor> reparameterize_with_kl(const Tensors& inputs, const OptionalTensor& noise,
                                                  const std::optional<at::Generator>& generator, const std::string& kl, int64_t num_samples,
                                                  double floor, int64_t event_dim);

/// (seed, offset) of one draw from torch's generator for the device of `like`: what an eager call draws, as a tensor for a graph.
Tensor draw_seed_kernel(const Tensor& like, std::optional<at::Generator> generator);

// log sum_k w_k e^{a_k}.
//   a and weights: broadcast to one shape; result and grad: that without `dim`
Tensor logsumexp_kernel(const Tensor& a, const OptionalTensor& weights, int64_t dim);
Tensors logsumexp_backward_kernel(const Tensor& grad, const Tensor& a, const OptionalTensor& weights, const Tensor& out, int64_t dim,
                                  const Mask& mask);
Tensor logsumexp_autograd(const Tensor& a, const OptionalTensor& weights, int64_t dim);
Tensor logsumexp(const Tensor& a, const OptionalTensor& weights, int64_t dim);

// Mixtures of Gaussians. The second result, (2, rows), holds what the backward pass needs of each row: the largest term and their sum.
//   x (*batch, D), weight_logits (K,), means (K, D); scale: diag (K, D), spherical (K,), tied (D, D), full (K, D, D); log p(x) (*batch);
//   responsibilities (*batch, K); sums of the statistics: (K,), (K, D) and as scale. On the CPU weight_logits may be (*batch, K), but for
//   the statistics
std::tuple<Tensor, Tensor> mixture_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                          string_view covariance, string_view precision);
Tensors mixture_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                const Tensor& normaliser, string_view covariance, string_view precision, const Mask& mask);
std::tuple<Tensor, Tensor> mixture_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                            string_view covariance, string_view precision);
std::tuple<Tensor, Tensor> mixture(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                   const std::string& covariance, const std::string& precision);
Tensor mixture_responsibilities_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                       string_view covariance, string_view precision);
Tensors mixture_responsibilities_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                 const Tensor& scale, const Tensor& responsibilities, string_view covariance,
                                                 string_view precision, const Mask& mask);
Tensor mixture_responsibilities_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                         string_view covariance, string_view precision);
Tensor mixture_responsibilities(const Tensor& x, const Tensor& weight_logits, const Tensor& means, const Tensor& scale,
                                const std::string& covariance, const std::string& precision);
/// log p(x), and the sums over rows of q, q (x - mean) and the second moments.
std::tuple<Tensor, Tensor, Tensor, Tensor> mixture_statistics_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                                     const Tensor& scale, const OptionalTensor& responsibilities,
                                                                     const OptionalTensor& sample_weight, string_view covariance,
                                                                     string_view precision);
std::tuple<Tensor, Tensor, Tensor, Tensor> mixture_statistics(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                              const Tensor& scale, const OptionalTensor& responsibilities,
                                                              const OptionalTensor& sample_weight, const std::string& covariance,
                                                              const std::string& precision);

// log p(x) and sum_d log p(x_d), each (*batch), of diag and spherical covariances; on the CPU. The third result, (2 + 2 D, rows), is what
// the backward pass needs of each row and of each of its dimensions.
std::tuple<Tensor, Tensor, Tensor> mixture_factorized_kernel(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                             const Tensor& scale, string_view covariance);
Tensors mixture_factorized_backward_kernel(const OptionalTensor& grad_joint, const OptionalTensor& grad_factorized, const Tensor& x,
                                           const Tensor& weight_logits, const Tensor& means, const Tensor& scale, const Tensor& normaliser,
                                           string_view covariance, const Mask& mask);
std::tuple<Tensor, Tensor, Tensor> mixture_factorized_autograd(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                               const Tensor& scale, string_view covariance);
std::tuple<Tensor, Tensor, Tensor> mixture_factorized(const Tensor& x, const Tensor& weight_logits, const Tensor& means,
                                                      const Tensor& scale, const std::string& covariance);

/// The sum or mean of all values, in an order that does not depend on the number of threads; eager only.
Tensor reduce(const Tensor& t, bool mean);

/// Runs multiply-adds on sink's device and returns how many floating-point operations that were: a benchmark's limit.
double fma_probe(Tensor sink, int64_t iterations);

/// Holds the host's choices for CUDA kernels at other values, to compare them; 0 leaves one. Not while another thread makes a call.
void set_cuda_tuning(int64_t lanes, int64_t blocks_per_processor, int64_t chunk_bytes);

// Mixture density networks: the parameters come with each row.
//   y (*batch, D), weight_logits (*batch, K), means (*batch, K, D), log_scale (*batch, K, D) or (*batch, K); result (*batch)
Tensor mdn_kernel(const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale, double floor);
Tensors mdn_backward_kernel(const Tensor& grad, const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale,
                            const Tensor& log_prob, double floor, const Mask& mask);
Tensor mdn_autograd(const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale, double floor);
Tensor mdn(const Tensor& y, const Tensor& weight_logits, const Tensor& means, const Tensor& log_scale, double floor);

// Terms over groups of parameters (group_table.h). `dim`, counted from the end, is that of the parameters of a group; the last event_dim
// dimensions, it among them, are one sample.
//   x and params broadcast along (*batch), events alike but for `dim`; result (*batch); the gradient is that of params
Tensor group_kernel(const Tensor& x, const Tensor& params, string_view term, Numbers numbers, int64_t dim, int64_t event_dim);
Tensors group_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& params, string_view term, Numbers numbers, int64_t dim,
                              int64_t event_dim, const Mask& mask);
Tensor group_autograd(const Tensor& x, const Tensor& params, string_view term, Numbers numbers, int64_t dim, int64_t event_dim);
Tensor group(const Tensor& x, const Tensor& params, const std::string& term, Numbers numbers, int64_t dim, int64_t event_dim);

// The log-probability of classes under softmax(logits) along `dim`.
//   x: integers, an index per cell (1 in `dim`); floats, a count per class; with row_begin and column, the counts of a CSR matrix that are
//   not zero, for logits (rows, classes)
Tensor softmax_kernel(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column, int64_t dim,
                      int64_t event_dim);
Tensors softmax_backward_kernel(const Tensor& grad, const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin,
                                const OptionalTensor& column, int64_t dim, int64_t event_dim, const Mask& mask);
Tensor softmax_autograd(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column, int64_t dim,
                        int64_t event_dim);
Tensor softmax(const Tensor& x, const Tensor& logits, const OptionalTensor& row_begin, const OptionalTensor& column, int64_t dim,
               int64_t event_dim);

}  // namespace ops
}  // namespace vae_fast
