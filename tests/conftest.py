"""For all tests: start from the signals an interactive shell gives, also under nohup or as a background job, whose ignored signals children inherit."""

import signal

for _number, _default in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler), (signal.SIGQUIT, signal.SIG_DFL)):
    if signal.getsignal(_number) == signal.SIG_IGN:
        signal.signal(_number, _default)
