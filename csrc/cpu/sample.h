// Reparameterized sampling, with the KL divergence of the same rows in the same loop. The noise is drawn again in the backward pass, or
// read there if the forward pass was asked to keep it.
#pragma once

#include <type_traits>

#include "../math/gaussian.h"
#include "bound.h"
#include "lanes.h"
#include "tile.h"

namespace vae_fast {
namespace VF_ISA {

/// noise[i] = normal of element begin + i, i < n <= kTile. In three loops, each of which vectorises: words, normals, and their
/// interleaving.
inline void fill_normal(uint64_t seed, uint64_t offset, int64_t begin, int n, float* noise) {
  constexpr int kBlocks = (kTile / 4 + 1 + kLanes - 1) / kLanes * kLanes;
  alignas(64) uint32_t w[4][kBlocks];
  alignas(64) float z[4][kBlocks], interleaved[4 * kBlocks];
  const uint64_t block = static_cast<uint64_t>(begin) / 4;
  const int skip = static_cast<int>(begin % 4), blocks = (skip + n + 3) / 4;
  philox_words(seed, offset, block, (blocks + kLanes - 1) / kLanes * kLanes, w);
  for (int k = 0; k < 4; k += 2) {
    VF_SIMD
    for (int b = 0; b < blocks; ++b) math::box_muller(w[k][b], w[k + 1][b], z[k][b], z[k + 1][b]);
  }
  float* out = skip == 0 && n % 4 == 0 ? noise : interleaved;
  VF_SIMD
  for (int b = 0; b < blocks; ++b) {
    for (int k = 0; k < 4; ++k) out[4 * b + k] = z[k][b];
  }
  if (out == interleaved) memcpy(noise, interleaved + skip, sizeof(float) * static_cast<size_t>(n));
}

/// The noise of rectangle r of sample s as compute values.
template <typename T, class Args>
inline const T* noise_of(const Args& a, int64_t s, Rect r, uint64_t seed, uint64_t offset, float* raw, T* buffer) {
  r.row += s * a.rows;
  if (a.noise.data != nullptr) return load(a.noise, r, a.columns, buffer);
  fill_normal(seed, offset, r.row * a.columns + r.column, r.count(), raw);
  if constexpr (sizeof(T) == 4) {
    return raw;
  } else {
    for (int i = 0; i < r.count(); ++i) buffer[i] = raw[i];
    return buffer;
  }
}

/// Beyond this a std, or its product with a noise, may be out of range: no normal number drawn is as large as 32.
template <typename T>
constexpr T far_std() {
  return math::largest<T>() / T(32);
}

// What one element of the two tiles below needs of its scale. Functions of their own: an object that lives in a vectorised loop's body is
// kept in memory there, and the loop is not vectorised.

/// std and, of a KL, its value: one exponential serves both.
template <math::ScaleForm form, int prior, typename T>
VF_INLINE T std_and_kl(const T (&in)[kMaxTermInputs], const math::TermParams<T>& params, T& value) {
  const math::Scale<form, T> scale(in[1]);
  const T std = scale.std();
  if constexpr (prior >= 0) {
    T d[kMaxTermInputs];
    math::Kl<form, prior == 1>::eval(in, scale, std, params, value, d);
  }
  return std;
}

/// The gradients of mu, scale and a prior's two: given that of z, that times the noise, and that of the KL.
template <math::ScaleForm form, int prior, typename T>
VF_INLINE void sample_gradients(const T (&in)[kMaxTermInputs], T gz, T gze, T gkl, const math::TermParams<T>& params,
                                T (&grad)[kMaxTermInputs]) {
  const math::Scale<form, T> scale(in[1]);
  T first, rest;
  scale.std_factors(first, rest);
  grad[0] = gz;
  grad[1] = scale.times_d_std(gze, first, rest);
  if constexpr (prior >= 0) {
    T d[kMaxTermInputs], value;
    math::Kl<form, prior == 1>::eval(in, scale, first * rest, params, value, d);
    grad[0] += math::times(gkl, d[0]);
    grad[1] += math::times(gkl, d[1]);
    if constexpr (prior == 1) grad[2] = math::times(gkl, d[2]), grad[3] = math::times(gkl, d[3]);
  }
}

/// std and, of a KL, value. True if a std is far out, see far_std.
template <math::ScaleForm form, int prior, typename T>
bool scale_tile(const TermTiles<T>& tiles, T* __restrict std_out, int n, const math::TermParams<T>& params) {
  const T* __restrict a0 = tiles.in[0];
  const T* __restrict a1 = tiles.in[1];
  const T* __restrict a2 = tiles.in[2];
  const T* __restrict a3 = tiles.in[3];
  T* __restrict value = tiles.value;
  const math::TermParams<T> p = params;
  VF_SIMD
  for (int i = 0; i < n; ++i) {
    T in[kMaxTermInputs], v;
    in[1] = a1[i];
    if constexpr (prior >= 0) in[0] = a0[i];
    if constexpr (prior == 1) in[2] = a2[i], in[3] = a3[i];
    std_out[i] = std_and_kl<form, prior>(in, p, v);
    if constexpr (prior >= 0) value[i] = v;
  }
  int out_of_range = 0;
#pragma omp simd reduction(+ : out_of_range)
  for (int i = 0; i < n; ++i) out_of_range += std_out[i] > far_std<T>() ? 1 : 0;
  return out_of_range != 0;
}

/// z = mu + std * noise, as sample_rows has it but for those far out.
template <math::ScaleForm form, typename T>
void sample_far(const T* mu, const T* scale, const T* noise, int n, T* z) {
  for (int i = 0; i < n; ++i) {
    const math::Scale<form, T> s(scale[i]);
    z[i] = s.std() > far_std<T>() ? s.sample(mu[i], noise[i]) : mu[i] + math::times(noise[i], s.std());
  }
}

/// grad[0] = gz + gkl dKL/dmu, grad[1] = gze dstd/dscale + gkl dKL/dscale, where gz and gze are the sums over samples of grad_z and grad_z
/// * noise; grad[2], grad[3] those of the prior.
template <math::ScaleForm form, int prior, typename T>
void scale_backward_tile(const TermTiles<T>& tiles, const T* __restrict gz, const T* __restrict gze, const T* __restrict gkl, int n,
                         const math::TermParams<T>& params) {
  const T* __restrict a0 = tiles.in[0];
  const T* __restrict a1 = tiles.in[1];
  const T* __restrict a2 = tiles.in[2];
  const T* __restrict a3 = tiles.in[3];
  T* __restrict g0 = tiles.grad[0];
  T* __restrict g1 = tiles.grad[1];
  T* __restrict g2 = tiles.grad[2];
  T* __restrict g3 = tiles.grad[3];
  const math::TermParams<T> p = params;
  VF_SIMD
  for (int i = 0; i < n; ++i) {
    T in[kMaxTermInputs], grad[kMaxTermInputs];
    in[1] = a1[i];
    if constexpr (prior >= 0) in[0] = a0[i];
    if constexpr (prior == 1) in[2] = a2[i], in[3] = a3[i];
    sample_gradients<form, prior>(in, gz[i], gze[i], prior >= 0 ? gkl[i] : T(0), p, grad);
    g0[i] = grad[0];
    g1[i] = grad[1];
    if constexpr (prior == 1) g2[i] = grad[2], g3[i] = grad[3];
  }
}

/// Calls f(form, prior) as compile-time constants; prior is -1 without a KL, 0 against N(0, 1), 1 against another Gaussian.
template <class F>
inline void with_form(int32_t form, int prior, F&& f) {
  using math::ScaleForm;
  const auto with_prior = [&](auto constant) {
    if (prior < 0) return f(constant, std::integral_constant<int, -1>());
    if (prior == 0) return f(constant, std::integral_constant<int, 0>());
    return f(constant, std::integral_constant<int, 1>());
  };
  switch (static_cast<ScaleForm>(form)) {
    case ScaleForm::kLogVar:
      return with_prior(std::integral_constant<ScaleForm, ScaleForm::kLogVar>());
    case ScaleForm::kLogStd:
      return with_prior(std::integral_constant<ScaleForm, ScaleForm::kLogStd>());
    case ScaleForm::kStd:
      return with_prior(std::integral_constant<ScaleForm, ScaleForm::kStd>());
    case ScaleForm::kVar:
      return with_prior(std::integral_constant<ScaleForm, ScaleForm::kVar>());
    case ScaleForm::kSoftplus:
      return with_prior(std::integral_constant<ScaleForm, ScaleForm::kSoftplus>());
  }
}

/// The inputs of a sample and its KL: mu, scale, and a prior's.
template <typename T, class Args>
inline int load_inputs(const Args& a, const Rect& r, TermTiles<T>& tiles, T (&buffer)[kMaxTermInputs][kTile]) {
  tiles.in[0] = load(a.mu, r, a.columns, buffer[0]);
  tiles.in[1] = load(a.scale, r, a.columns, buffer[1]);
  const bool prior = a.with_kl && a.kl.in[2].data != nullptr;
  for (int k = 2; prior && k < kMaxTermInputs; ++k) tiles.in[k] = load(a.kl.in[k], r, a.columns, buffer[k]);
  return prior ? 1 : a.with_kl ? 0 : -1;
}

/// Draws rows [r0, r1) of every sample; adds the KL of each to acc[r - r0].
template <typename T>
void sample_rows(const SampleArgs& a, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1, double* acc) {
  alignas(64) T in_buffer[kMaxTermInputs][kTile], std[kTile], noise_buffer[kTile], z_buffer[kTile], value[kTile];
  alignas(64) float raw[kTile];
  const math::TermParams<T> params = math::term_params<math::Kl<math::ScaleForm::kLogVar, false>, T>(a.kl.param);
  Held<T> held;
  for_each_rect(r0, r1, 0, a.columns, a.columns, [&](const Rect& r) {
    const int n = r.count();
    TermTiles<T> tiles;
    tiles.value = value;
    const int prior = load_inputs(a, r, tiles, in_buffer);
    tiles.in[1] = held.of(a.bound, tiles.in[1], n);
    bool far = false;
    with_form(a.form, prior,
              [&](auto form, auto p) { far = scale_tile<decltype(form)::value, decltype(p)::value, T>(tiles, std, n, params); });
    for (int i = 0; a.with_kl && i < r.rows; ++i) acc[r.row - r0 + i] += a.kl.coefficient * sum(value + i * r.columns, r.columns);
    for (int64_t s = 0; s < a.samples; ++s) {
      Rect to = r;
      to.row += s * a.rows;
      float* drawn = a.drawn != nullptr ? a.drawn + to.row * a.columns + to.column : raw;
      const T* noise = noise_of<T>(a, s, r, seed, offset, drawn, noise_buffer);
      T* place = in_place<T>(a.z, to, a.columns);
      T* z = place != nullptr ? place : z_buffer;
      const T* __restrict mu = tiles.in[0];
      if (far) {
        with_form(a.form, -1, [&](auto form, auto) { sample_far<decltype(form)::value, T>(mu, tiles.in[1], noise, n, z); });
      } else {
        VF_SIMD
        for (int i = 0; i < n; ++i) z[i] = mu[i] + math::times(noise[i], std[i]);
      }
      if (place == nullptr) store(z, a.z, to, a.columns);
    }
  });
}

template <typename T>
void sample_backward_rows(const SampleBackwardArgs& a, uint64_t seed, uint64_t offset, int64_t r0, int64_t r1) {
  alignas(64) T in_buffer[kMaxTermInputs][kTile], grad_buffer[kMaxTermInputs][kTile];
  alignas(64) T noise_buffer[kTile], z_buffer[kTile], gz[kTile], gze[kTile], gkl[kTile + kSpill];
  alignas(64) float raw[kTile];
  const math::TermParams<T> params = math::term_params<math::Kl<math::ScaleForm::kLogVar, false>, T>(a.kl.param);
  Held<T> held;
  const Stream* grads[kMaxTermInputs] = {&a.grad_mu, &a.grad_scale, &a.kl.grad[2], &a.kl.grad[3]};
  for_each_rect(r0, r1, 0, a.columns, a.columns, [&](const Rect& r) {
    const int n = r.count();
    TermTiles<T> tiles;
    const int prior = load_inputs(a, r, tiles, in_buffer);
    tiles.in[1] = held.of(a.bound, tiles.in[1], n);
    T* place[kMaxTermInputs];
    for (int k = 0; k < kMaxTermInputs; ++k) {
      place[k] = in_place<T>(*grads[k], r, a.columns);
      tiles.grad[k] = place[k] != nullptr ? place[k] : grad_buffer[k];
    }
    if (a.grad_z.data == nullptr) {
      VF_SIMD
      for (int i = 0; i < n; ++i) gz[i] = gze[i] = T(0);
    }
    for (int64_t s = 0; a.grad_z.data != nullptr && s < a.samples; ++s) {
      const T* __restrict noise = noise_of<T>(a, s, r, seed, offset, raw, noise_buffer);
      Rect from = r;
      from.row += s * a.rows;
      const T* __restrict g = load(a.grad_z, from, a.columns, z_buffer);
      if (s == 0) {
        VF_SIMD
        for (int i = 0; i < n; ++i) {
          gz[i] = g[i];
          gze[i] = g[i] * noise[i];
        }
      } else {
        VF_SIMD
        for (int i = 0; i < n; ++i) {
          gz[i] += g[i];
          gze[i] += g[i] * noise[i];
        }
      }
    }
    if (a.with_kl) expand_rows(a.kl.row_grad, r, gkl);
    with_form(a.form, prior, [&](auto form, auto p) {
      scale_backward_tile<decltype(form)::value, decltype(p)::value, T>(tiles, gz, gze, gkl, n, params);
    });
    held.chain(a.bound, tiles.grad[1], n);
    for (int k = 0; k < kMaxTermInputs; ++k) {
      if (grads[k]->data != nullptr && place[k] == nullptr) store(tiles.grad[k], *grads[k], r, a.columns);
    }
  });
}

}  // namespace VF_ISA
}  // namespace vae_fast
