"""The parts that decoder-only families share: configuration, graph inputs, the ends of the graph, the PipelineModel."""
