"""price: a gRPC service."""

from concurrent import futures

import grpc


def get(request, context):
    return request


server = grpc.server(futures.ThreadPoolExecutor(max_workers=12))
handler = grpc.unary_unary_rpc_method_handler(get)
server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("shop.Price", {"Get": handler}),))
server.add_insecure_port("[::]:50051")
server.start()
server.wait_for_termination()
