def helped(text):
    return "helped " + text
