"""What the verbs do once their arguments are parsed: open what is named, call one stage, print what came of it.

Knows the stages and the console; holds no method.
"""
