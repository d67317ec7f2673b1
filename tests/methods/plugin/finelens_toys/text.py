from finelens.methods.parts.frozen import HeadTask, NoOptions

CONFIG = NoOptions


def build(engine, heads, config, training, seed):
    return HeadTask(engine, heads.templates)
