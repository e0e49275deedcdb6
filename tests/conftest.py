"""For all tests: a plain environment, however they were started."""

import signal


def pytest_configure(config):
    """nohup and a shell's `&` leave signals ignored, and every process of the tests would inherit that."""
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
