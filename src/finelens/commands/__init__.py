"""The verbs of the command, a module for those that belong together. Parse, call, print; what is heavy is imported inside the verb that needs it."""
