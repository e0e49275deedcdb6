from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: words
short_description: words
description: The words of each term, and an option.
options:
  ending: {description: added to each, type: string, default: ".", vars: [{name: words_ending}]}
"""


class LookupModule(LookupBase):
    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        return [word + self.get_option("ending") for term in terms for word in term.split()]
