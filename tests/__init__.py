"""The tests; they mirror ``imserver``. ``make test`` runs them, ``make test TESTS=tests.ops`` some."""

import warnings

# A coroutine that nobody awaits did nothing: a test that is one has tested nothing, code that makes one has a
# hole. trial shows a warning that is an error as an error of the test.
warnings.filterwarnings("error", message="coroutine .* was never awaited", category=RuntimeWarning)
