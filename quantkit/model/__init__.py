"""The only room that knows tensor names: one file per architecture, as data, and the checks that use it."""
