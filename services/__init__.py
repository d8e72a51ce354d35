"""Ten services that know each other through events only. The same anatomy in each: learn one, know all.

__init__.py   consumes / does / produces
main.py       the only wiring: build(settings) -> Service
settings.py   what an operator can set
handlers.py   events in and out
domain.py     the rules, pure
storage.py    its own tables or files
http.py, clients.py, job.py, recipe.py   where needed
"""
