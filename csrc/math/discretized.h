// A logistic distribution cut into the bins of an image's levels: the log-probability of one value, and of a pixel under a component.
#pragma once

#include "mixture.h"
#include "term.h"
#include "wide.h"

VF_MATH_BEGIN

/// The bins of values y on [-1, 1]: half their width, and where the first ends and the last begins, which reach to infinity. The logarithm
/// of the width is worked out once a call: gcc vectorises no loop with one of an invariant inside.
template <typename T>
struct Bins {
  T half, low, high, log_width;
};

/// log(sigmoid(u) - sigmoid(v)), u and v the bin's ends in units of the scale s: -softplus(-u) - softplus(v) + log(1 - e^(v - u)), where
/// nothing cancels; without its second and third part in the first bin, its first and third in the last (Salimans et al. 2017,
/// "PixelCNN++", eq. 2). `thin`: what the field's implementations do where that is at most log 1e-5, the density at the bin's middle times
/// its width.
template <typename T, bool thin>
struct DiscretizedLogistic {
  T value, d_loc, d_log_scale;

  VF_INLINE DiscretizedLogistic(T y, T loc, T log_scale, const Bins<T>& bins) {
    const T inverse = exp_bounded(-log_scale), offset = y - loc, width = bins.half + bins.half;
    const T u = held_within((offset + bins.half) * inverse, largest<T>()), v = held_within((offset - bins.half) * inverse, largest<T>()),
            gap = width * inverse;
    const bool above = !(y > bins.high), below = !(y < bins.low);  // the bin ends above, below; both for NaN
    const Logistic<T> at_u(u, exp_minus_abs_quick(u)), at_v(v, exp_minus_abs_quick(v));
    const T upper = (u < T(0) ? u : T(0)) - at_u.log1p_e, lower = (v > T(0) ? -v : T(0)) - at_v.log1p_e;
    const T u_slope = above ? at_u.q() : T(0), v_slope = below ? at_v.p() : T(0);

    // log(1 - e^-gap) and its derivative in log s, -gap / (e^gap - 1)
    const T square = gap * gap, e = exp_minus_abs_quick(gap);
    const T near =
        (bins.log_width - log_scale) + fma(square, T(1.0 / 24) + square * (T(-1.0 / 2880) + square * T(1.0 / 181440)), T(-0.5) * gap);
    const T near_slope = fma(square, T(1.0 / 12) + square * (T(-1.0 / 720) + square * T(1.0 / 30240)), T(1) - T(0.5) * gap);
    const bool narrow = gap < T(sizeof(T) == 8 ? 0.02 : 0.7);
    const T part = narrow ? near : log1m_half(e), part_slope = narrow ? near_slope : gap * ratio(e, T(1) - e);
    const bool inside = above && below;

    value = ((above ? upper : T(0)) + (below ? lower : T(0))) + (inside ? part : T(0));
    d_loc = inverse * (v_slope - u_slope);
    d_log_scale = (v * v_slope - u * u_slope) - (inside ? part_slope : T(0));
    if constexpr (thin) {
      const T t = held_within(offset * inverse, largest<T>()), size = abs(t);
      const Logistic<T> at_t(size, exp_minus_abs_quick(size));
      const T tanh_half = T(1) - (at_t.smaller + at_t.smaller);
      const T limit = inside ? T(-11.512925464970228420) : -infinity<T>();  // log 1e-5
      const bool density = value < limit;
      value = density ? ((-size - (at_t.log1p_e + at_t.log1p_e)) - log_scale) + bins.log_width : value;
      d_loc = density ? inverse * (t < T(0) ? -tanh_half : tanh_half) : d_loc;
      d_log_scale = density ? size * tanh_half - T(1) : d_log_scale;
    }
    value = value <= -largest<T>() ? -infinity<T>() : value;  // of a u or v that was out of range
  }
};

/// Where a value in [0, 1] lies on [-1, 1]; `stretch` turns x = k / 255, as bytes are read, into k / (2^bits - 1).
template <typename T>
VF_INLINE T centred(T x, T stretch) {
  return fma(T(2) * stretch, x, T(-1));
}

/// sum over columns of the log-probability of x in [0, 1] under its own logistic.
struct DiscretizedLogisticTerm {
  static constexpr int kInputs = 3, kParams = 2;  // x, loc, log_scale; 2^bits - 1, stretch

  static void derive(double (&param)[kMaxTermParams]) { param[2] = ::log(2.0 / param[0]); }

  template <typename T>
  VF_INLINE static void eval(const T (&in)[kMaxTermInputs], const TermParams<T>& params, T& value, T (&d)[kMaxTermInputs]) {
    const T half = T(1) / params.at[0];
    const DiscretizedLogistic<T, false> at(centred(in[0], params.at[1]), in[1], in[2],
                                           Bins<T>{half, half - T(1), T(1) - half, params.at[2]});
    value = at.value;
    d[0] = T(-2) * params.at[1] * at.d_loc;
    d[1] = at.d_loc;
    d[2] = at.d_log_scale;
  }
};

/// tanh a, to rounding of 1.
template <typename T>
VF_INLINE T tanh(T a) {
  const T e = exp_minus_abs(T(2) * a), t = ratio(T(1) - e, T(1) + e);
  return a < T(0) ? -t : t;
}

/// The numbers of a group term: 2^bits - 1, stretch, the ends of the first and the last bin, least log scale; and what follows from them:
/// half the width of a bin, and the logarithm of the whole.
template <typename T>
struct GroupNumbers {
  T at[kMaxGroupNumbers], half, log_width;

  explicit GroupNumbers(const double (&given)[kMaxGroupNumbers])
      : half(T(1) / static_cast<T>(given[0])), log_width(static_cast<T>(::log(2.0 / given[0]))) {
    for (int i = 0; i < kMaxGroupNumbers; ++i) at[i] = static_cast<T>(given[i]);
  }
};

/// A component of a mixture over pixels of one or three values: a discretised logistic each, whose locations are moved by what the pixel
/// has before them (Salimans et al. 2017, section 2.2): m_G + tanh(c_0) R, m_B + tanh(c_1) R + tanh(c_2) G. Its parameters: the logit of
/// its weight, then for each colour location, log scale and, of three colours, one coefficient.
template <int colours, bool thin>
struct DiscretizedPixel {
  static_assert(colours == 1 || colours == 3, "grey or RGB");
  static constexpr int kData = colours, kSlots = colours == 1 ? 3 : 10;

  template <typename T>
  VF_INLINE static void eval(const T (&x)[kData], const T (&p)[kSlots], const GroupNumbers<T>& n, T& value, T (&d)[kSlots]) {
    const Bins<T> bins{n.half, n.at[2], n.at[3], n.log_width};
    const T floor = n.at[4];
    const auto scale = [&](T log_scale) { return log_scale < floor ? floor : log_scale; };
    const T red = centred(x[0], n.at[1]);
    const DiscretizedLogistic<T, thin> first(red, p[1], scale(p[2]), bins);
    value = first.value;
    d[0] = T(1);
    d[1] = first.d_loc;
    d[2] = p[2] <= floor ? T(0) : first.d_log_scale;
    if constexpr (colours == 3) {
      const T green = centred(x[1], n.at[1]), blue = centred(x[2], n.at[1]), c0 = tanh(p[3]), c1 = tanh(p[6]), c2 = tanh(p[9]);
      const DiscretizedLogistic<T, thin> second(green, p[4] + c0 * red, scale(p[5]), bins);
      const DiscretizedLogistic<T, thin> third(blue, (p[7] + c1 * red) + c2 * green, scale(p[8]), bins);
      value = (first.value + second.value) + third.value;
      d[3] = (T(1) - c0 * c0) * (second.d_loc * red);
      d[4] = second.d_loc;
      d[5] = p[5] <= floor ? T(0) : second.d_log_scale;
      d[6] = (T(1) - c1 * c1) * (third.d_loc * red);
      d[7] = third.d_loc;
      d[8] = p[8] <= floor ? T(0) : third.d_log_scale;
      d[9] = (T(1) - c2 * c2) * (third.d_loc * green);
    }
  }
};

VF_MATH_END
