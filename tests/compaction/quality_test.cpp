// SPDX-License-Identifier: MIT
// Does the fit do what it is for? On heads of a known kind: clustered keys, peaked queries with a background, live
// rows beside the region.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdio>

#include "compaction/fit.h"
#include "compaction/score.h"
#include "synthetic.h"

namespace sh::compaction {
namespace {

using testing::clustered_head;
using testing::kernel_set;
using testing::mean_of;
using testing::oracle_errors;
using testing::worst_of;

struct Trial {
  CompactHead plain, fitted;
};

Trial compact(const testing::Head& head, int64_t n_kept, Fit fit = Fit::both, RowScore score = RowScore::rms) {
  const HeadProblem problem = head.problem();
  const SolveOptions options;
  const auto scores = score_rows(problem, testing::scoring(score, Weighting::attention_share), options, kernel_set());
  const auto rows = top_rows(scores, n_kept);
  return {fit_head(problem, rows, scores, Fit::none, options, kernel_set()),
          fit_head(problem, rows, scores, fit, options, kernel_set())};
}

TEST(Quality, FitBeatsPlainRowsOnQueriesThatItNeverSaw) {
  const testing::Head head = clustered_head(11, 1024, 4096);
  const testing::Head fresh = with_queries(head, clustered_head(11, 1024, 4096 + 768));
  for (const int percent : {5, 10, 20}) {
    for (const RowScore score : {RowScore::max, RowScore::rms}) {
      const Trial trial = compact(head, 1024 * percent / 100, Fit::both, score);
      const FitReport& report = trial.fitted.report;
      const auto plain = oracle_errors(fresh, trial.plain), fitted = oracle_errors(fresh, trial.fitted);
      std::printf(
          "t/T %2d %% %s: held-out plain %.4f fitted %.4f (worst %.3f %.3f) fresh plain %.4f fitted %.4f (worst "
          "%.3f %.3f) "
          "log mass %.3f %.3f, ridges %g %g, sweeps %d\n",
          percent, score == RowScore::max ? "max" : "rms", report.heldout_plain, report.heldout_fitted,
          report.heldout_plain_worst, report.heldout_fitted_worst, mean_of(plain), mean_of(fitted),
          worst_of(plain), worst_of(fitted), report.log_mass_plain, report.log_mass_fitted, report.bias_ridge,
          report.value_ridge, report.n_nnls_sweeps);
      EXPECT_TRUE(report.is_fit_accepted);
      EXPECT_LT(report.heldout_fitted, report.heldout_plain);
      EXPECT_LT(mean_of(fitted), mean_of(plain));
    }
  }
}

}  // namespace
}  // namespace sh::compaction
