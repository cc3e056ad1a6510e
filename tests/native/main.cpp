// Runs every check over every implementation that was built in. Options: --rounds N (random cases per term), --huge (more than 2^31
// elements), --only NAME (row_terms, sample, logsumexp, mixture, mixture_dims, mixture_parameters, mixture_products, mdn, tunings,
// groups, softmax, gamma or exponential).
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "implementations.h"

namespace {

/// The kernels are right whatever the host chooses for them.
void check_tunings(native::Implementation& implementation, int rounds) {
  struct Choice {
    int lanes, blocks;
    long chunk;
    bool any;
  };
  for (const Choice& c : {Choice{8, 1, 1 << 15, true}, Choice{12, 0, 0, false}, Choice{4, 0, 0, false}, Choice{512, 0, 0, false},
                          Choice{0, -1, 0, false}, Choice{0, 0, -1, false}}) {
    tally.check(implementation.tune(c.lanes, c.blocks, c.chunk) == c.any, "set_tuning " + std::to_string(c.lanes));
    if (!c.any) continue;
    native::check_row_terms_edges(implementation);
    native::check_logsumexp(implementation, rounds);
    native::check_mixture(implementation, rounds);
    native::check_mixture_dims(implementation, rounds);
    native::check_softmax(implementation, rounds);
    tally.check(implementation.tune(0, 0, 0), "set_tuning 0");
  }
}

}  // namespace

int main(int argc, char** argv) {
  int rounds = 40;
  bool huge = false;
  const char* only = nullptr;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--huge") == 0) {
      huge = true;
    } else if (std::strcmp(argv[i], "--rounds") == 0 && i + 1 < argc) {
      rounds = std::atoi(argv[++i]);
    } else if (std::strcmp(argv[i], "--only") == 0 && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr, "usage: %s [--rounds N] [--huge] [--only NAME]\n", argv[0]);
      return 2;
    }
  }
  const auto wanted = [&](const char* name) { return only == nullptr || std::strcmp(only, name) == 0; };
  if (wanted("sample")) native::check_philox();
  if (wanted("gamma")) native::check_gamma();
  if (wanted("exponential")) native::check_exponential();
  for (native::Implementation& implementation : native::implementations()) {
    const Tally before = tally;
    if (wanted("row_terms")) native::check_row_terms(implementation, rounds);
    if (wanted("row_terms")) native::check_row_terms_edges(implementation);
    if (wanted("sample")) native::check_sample(implementation, rounds);
    if (wanted("logsumexp")) native::check_logsumexp(implementation, rounds);
    if (wanted("logsumexp")) native::check_scale(implementation);
    if (wanted("mixture")) native::check_mixture(implementation, rounds);
    if (wanted("mixture_dims")) native::check_mixture_dims(implementation, rounds);
    if (wanted("mixture_parameters")) native::check_mixture_parameters(implementation, rounds);
    if (wanted("mixture_products")) native::check_mixture_products(implementation);
    if (wanted("mdn")) native::check_mdn(implementation, rounds);
    if (wanted("groups")) native::check_groups(implementation, rounds);
    if (wanted("softmax")) native::check_softmax(implementation, rounds);
    if (wanted("tunings") && implementation.tune) check_tunings(implementation, rounds / 80 + 1);
    if (huge) native::check_huge(implementation);
    std::printf("%-12s %ld passed, %ld failed\n", implementation.name.c_str(), tally.passed - before.passed, tally.failed - before.failed);
  }
  std::printf("%ld passed, %ld failed\n", tally.passed, tally.failed);
  return tally.failed == 0 ? 0 : 1;
}
